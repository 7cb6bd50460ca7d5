"""Style sheet of the report: for light and dark screens, and for paper."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --faint: #667080; --line: #dfe3e8; --card: #f5f7f9;
  --accent: #1764c0; --second: #8fb4de; --good: #2f9e5b; --warn: #e8a33d; --bad: #cf3a3a; }
@media (prefers-color-scheme: dark) { :root { --paper: #16191d; --ink: #e6e9ed; --faint: #98a2b0; --line: #323840;
  --card: #1f242a; --accent: #6cb0ff; --second: #3f648c; --good: #49b877; --warn: #d99a3c; --bad: #f06b6b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 1040px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
h3 { font-size: 15px; margin: 18px 0 2px; overflow-wrap: anywhere; }
p { margin: 6px 0 10px; max-width: 80ch; }
.faint, small, figcaption, dt { color: var(--faint); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 20px 0 0; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 9px 12px; }
.cards b { display: block; font-size: 23px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.cards .main { border-color: var(--accent); } .cards .main b { color: var(--accent); }
.cards small { display: block; line-height: 1.35; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { padding: 4px 16px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--faint); font-size: 13px; }
.number { text-align: right; }
td.text { overflow-wrap: anywhere; min-width: 12ch; }
.warnings { border-left: 4px solid var(--warn); background: var(--card); padding: 8px 14px; margin: 20px 0 0; }
.warnings h2 { margin: 0; border: 0; font-size: 16px; } .warnings ul { margin: 4px 0; padding-left: 20px; }
.warnings li, .bad { overflow-wrap: anywhere; } .bad { color: var(--bad); }
.chip { display: inline-block; width: 11px; height: 11px; border-radius: 3px; border: 1px solid #0006;
  margin-right: 7px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--faint); } svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--faint); }
svg polyline { fill: none; stroke-linejoin: round; } polyline.j { stroke: var(--accent); stroke-width: 2; }
polyline.f { stroke: var(--second); stroke-width: 1.2; } circle.j { fill: var(--accent); }
circle.f { fill: var(--second); } .prompt { fill: var(--ink); } .refused { fill: var(--bad); }
.bar { fill: var(--second); } .mark { stroke: var(--bad); stroke-dasharray: 3 2; }
.tracked { fill: var(--good); } .occluded { fill: var(--warn); } .lost { fill: var(--bad); }
.key span { margin-right: 16px; white-space: nowrap; }
.key i { display: inline-block; width: 16px; height: 7px; margin-right: 5px; vertical-align: middle; }
.moments figure { margin: 0 0 20px; break-inside: avoid; }
.moments .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.moments .pair.one { grid-template-columns: minmax(0, 560px); }
.moments img { display: block; width: 100%; height: auto; border-radius: 4px; }
details summary { cursor: pointer; color: var(--faint); margin: 8px 0; }
code { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
@media print { :root { --paper: #fff; --ink: #000; --faint: #444; --line: #ccc; --card: #f6f6f6; --accent: #1764c0;
    --second: #8fb4de; --good: #2f9e5b; --warn: #e8a33d; --bad: #cf3a3a; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; } * { print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } tr, .object, svg { break-inside: avoid; } }
"""
