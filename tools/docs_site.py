"""Hooks of mkdocs.yml: pages from the root of the repository, and links from pages to files of the source.

The pages in docs/ link to files outside it by relative paths, so that the links work in a checkout and on a code host.
The site has no such files. Therefore README.md, CONTRIBUTING.md and CHANGELOG.md become pages of the site, and every
other linked file is shown on a page of its own under source/. A link to a file that does not exist is a warning, which
fails a strict build.
"""
from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changes.md'}
LANGUAGES = {'.cpp': 'cpp', '.msg': 'text', '.py': 'python', '.sh': 'bash', '.srv': 'text', '.toml': 'toml',
             '.txt': 'text', '.xml': 'xml', '.yaml': 'yaml', '.yml': 'yaml', '.json': 'json'}

_CODE = re.compile(r'^(?P<fence> *(`{3,}|~{3,})).*?^(?P=fence)`*~* *$|(?P<ticks>`+)[^`].*?(?P=ticks)',
                   re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'(?P<before>\]\(<?|^\[[^\]\n]+\]: *|<(?:a|img)\b[^>]*\b(?:href|src)=")(?P<target>[^)\s">]+)',
                   re.MULTILINE)
_ELSEWHERE = re.compile(r'[a-z][a-z0-9+.-]*:|//|#', re.IGNORECASE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the anchors of headings as GitHub does, so that links to them work in both places."""
    config.mdx_configs['toc']['slugify'] = slugify(case='lower')
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, one page for each linked file of the source, and the colours of code."""
    texts = {f'docs/{file.src_uri}': file.content_string for file in files.documentation_pages()}
    for name, uri in ROOT_PAGES.items():
        if (ROOT / name).is_file() and files.get_file_from_path(uri) is None:
            texts[name] = (ROOT / name).read_text()
            files.append(File.generated(config, uri, content=texts[name]))
    files.append(File.generated(config, 'code.css', content=HtmlFormatter().get_style_defs('.highlight')))
    linked = {path for page, text in texts.items() for path in _linked_paths(page, text)}
    for path in sorted(linked):
        uri = _site_path(path)
        if uri.startswith('source/') and (ROOT / path).is_file():
            files.append(File.generated(config, uri, content=_source_page(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page at the pages of the site."""
    if page.file.src_uri.startswith('source/'):
        return markdown
    here = _repository_path(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        target, _, anchor = match['target'].partition('#')
        if _ELSEWHERE.match(match['target']):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if not (ROOT / path).is_file():
            return match[0]  # mkdocs warns of it
        uri = posixpath.relpath(_site_path(path), posixpath.dirname(page.file.src_uri) or '.')
        return match['before'] + uri + (f'#{anchor}' if anchor and not _site_path(path).startswith('source/') else '')

    return ''.join(part if is_code else _LINK.sub(rewrite, part) for part, is_code in _parts(markdown))


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a Markdown text in order, each with whether it is code."""
    end = 0
    for code in _CODE.finditer(text):
        yield text[end:code.start()], False
        yield code[0], True
        end = code.end()
    yield text[end:], False


def _linked_paths(page: str, text: str) -> Iterator[str]:
    """Yield the paths, from the root of the repository, that a page links to."""
    for part, is_code in _parts(text):
        for match in [] if is_code else _LINK.finditer(part):
            if not _ELSEWHERE.match(match['target']):
                target = match['target'].partition('#')[0]
                yield posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _repository_path(uri: str) -> str:
    names = {uri: name for name, uri in ROOT_PAGES.items()}
    return f'docs/{uri}' if (ROOT / 'docs' / uri).is_file() else names.get(uri, uri)


def _site_path(path: str) -> str:
    if path.startswith('docs/'):
        return path.removeprefix('docs/')
    return ROOT_PAGES.get(path, f'source/{path}.md')


def _source_page(path: str) -> str:
    text = (ROOT / path).read_text()
    fence = '`' * max(3, 1 + max((len(ticks) for ticks in re.findall('`+', text)), default=0))
    language = LANGUAGES.get(Path(path).suffix, 'text')
    return f'---\nsearch:\n  exclude: true\n---\n# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n'
