"""The dependency rule between the parts of the source, read from its imports.

Today's modules of sam2_ros lie in one folder; ``ROOMS`` says to which part each belongs. The exceptions below are
known violations: remove them, add none.
"""
import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# sam2_ros: part -> its modules
ROOMS = {
    'runtime': 'parameters dds cores failures guarded_node namesakes node_arguments node_help stopping '
               'executables',
    'messages': 'conversions compressed_images encodings vision_messages stamps',
    'tabletop': 'demo_scene demo_solids demo_textures demo_depth',
    'depth': 'depth calibration lens spatial box_fit',
    'recordings': 'evaluation.recording bags bag_files bag_mcap bag_reader bag_sqlite bag_storage bag_tracks '
                  'bag_writer label_bags evaluation.folders',
    'perception': 'stream tracked_objects object_steps worker mailbox history one_shot frame prompting prompt_reader '
                  'catch_up states detections shedding meter skipped_images loading',
    'drawing': 'overlay',
    'topics': 'camera outputs views clouds depth_topics prompt_point diagnostics',
    'evaluation': 'evaluation evaluation.job evaluation.many evaluation.run evaluation.live evaluation.delivery '
                  'evaluation.prompts evaluation.results evaluation.stages evaluation.scenes evaluation.samples '
                  'evaluation.scores evaluation.comparison evaluation.moments evaluation.report '
                  'evaluation.report_style evaluation.charts evaluation.frames evaluation.results_bag '
                  'evaluation.export evaluation.pictures evaluation.parameter_file',
    'preflight': 'check_machine check_listener check_camera findings',
    'demo': 'demo_graph demo demo_prompter demo_recorder demo_recording demo_pictures',
    'executables': 'node check evaluate compare train launching',
}
# part -> the parts it may import; sam2_core is open to all of them
MAY_IMPORT = {
    'runtime': '', 'messages': '', 'tabletop': '',
    'depth': 'messages runtime',
    'recordings': 'messages',
    'perception': 'depth messages runtime',
    'drawing': 'perception depth messages runtime',
    'topics': 'drawing perception depth messages runtime',
    'preflight': 'depth messages runtime',
    'evaluation': 'recordings drawing perception tabletop depth messages runtime',
    'demo': 'drawing perception tabletop depth messages runtime',
    'executables': ' '.join(ROOMS),
}

KNOWN_UPWARDS = {
    ('sam2_ros.preflight.listener', 'sam2_ros.topics.depth_topics'),
    ('sam2_ros.evaluation.report.training_export', 'sam2_ros.topics.publishers'),
    ('sam2_ros.evaluation.report.training_export', 'sam2_ros.topics.planner_views'),
    ('sam2_ros.evaluation.report.pictures', 'sam2_ros.demo.pictures'),
    ('sam2_ros.evaluation.report.results_bag', 'sam2_ros.topics.publishers'),
    ('sam2_ros.evaluation.report.results_bag', 'sam2_ros.topics.planner_views'),
    ('sam2_ros.evaluation.replay', 'sam2_ros.topics.publishers'),
    ('sam2_ros.perception.worker', 'sam2_ros.topics.camera_topics'),
}
KNOWN_CIRCLES = {
    frozenset({'sam2_core.compiled', 'sam2_core.memory', 'sam2_core.model'}),
}
KNOWN_TWINS = {'ClipSource', 'Scene', 'Recording', 'View', 'Difference', 'Camera', 'Shot'}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): ast.parse(path.read_text())
           for package in ('sam2_core', 'sam2_ros') for path in sorted((ROOT / package).rglob('*.py'))}


def imports(module: str) -> Iterator[str]:
    """Yield what a module imports anywhere in it, a module of ours where the name is one, else as written."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{module}: import by the full name'
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                yield name if name in MODULES else node.module


OURS = {module: {name for name in imports(module) if name in MODULES} for module in MODULES}


def room(module: str) -> str:
    rooms = [name for name, modules in ROOMS.items() if module.removeprefix('sam2_ros.') in modules.split()]
    rooms = rooms or [name for name in ROOMS if module.split('.')[1] == name]
    assert len(rooms) == 1, f'{module} is in {rooms or "no room"}: name it once in ROOMS'
    return rooms[0]


def test_each_part_of_sam2_ros_imports_only_what_stands_below_it():
    upwards = set()
    for module in MODULES.keys() - {'sam2_ros'}:
        if module.startswith('sam2_ros.'):
            own = room(module)
            above = {name for name in OURS[module] if name.startswith('sam2_ros.')
                     and room(name) not in (own, *MAY_IMPORT[own].split())}
            upwards |= {(module, name) for name in above}
    assert upwards == KNOWN_UPWARDS


def test_sam2_core_imports_neither_ros_nor_sam2_ros():
    packages = {name.split('.')[0] for module in MODULES if module.startswith('sam2_core') for name in imports(module)}
    assert {name for name in packages if name in ('sam2_ros', 'rclpy') or name.endswith('_msgs')} == set()


def test_no_import_runs_in_a_circle():
    assert circles(OURS) == KNOWN_CIRCLES


def test_no_two_classes_have_one_name():
    places = defaultdict(set)
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(module)
    assert {name for name, modules in places.items() if len(modules) > 1} == KNOWN_TWINS


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the groups of modules each of which imports, over others or directly, every other of its group."""
    reached = {module: set(graph[module]) for module in graph}
    for between in graph:  # Warshall: paths that pass through ``between``
        for module in graph:
            if between in reached[module]:
                reached[module] |= reached[between]
    return {frozenset(other for other in reached[module] if module in reached[other])
            for module in reached if module in reached[module]}


def test_a_circle_is_found():
    assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}, 'd': {'a', 'd'}}) == {frozenset('bc'), frozenset('d')}
