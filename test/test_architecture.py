"""The dependency rule between the parts of the source, read from its imports, and the size of its classes.

docs/architecture.md explains the rule. It has no exceptions.
"""
import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# package of sam2_ros -> the packages it may import; the modules in the root (executables) may import all of them, and
# sam2_core is open to everybody
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
}

LINES_OF_A_CLASS, METHODS_OF_A_CLASS = 250, 20


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


def package(module: str) -> str:
    """Return the package of a module of sam2_ros, '' for one in the root."""
    name = module.split('.')[1]
    return name if (ROOT / 'sam2_ros' / name).is_dir() else ''


def test_each_package_of_sam2_ros_imports_only_what_stands_below_it():
    upwards = set()
    for module in OURS:
        if module.startswith('sam2_ros.') and (own := package(module)):
            above = {name for name in OURS[module] if name.startswith('sam2_ros.')
                     and package(name) not in (own, *MAY_IMPORT[own].split())}
            upwards |= {(module, name) for name in above}
    assert upwards == set()


def test_the_root_of_sam2_ros_shows_at_most_twenty_rooms():
    rooms = {path.stem for path in (ROOT / 'sam2_ros').iterdir()
             if path.suffix == '.py' or (path / '__init__.py').exists()}
    assert rooms - {'__init__'} == {'node', 'check', 'evaluate', 'compare', 'train', 'launching', *MAY_IMPORT}
    assert len(rooms) <= 20


def test_datasets_do_not_import_training():
    assert {name for module in OURS if module.startswith('sam2_core.datasets')
            for name in OURS[module] if name.startswith('sam2_core.training')} == set()


def test_sam2_core_imports_neither_ros_nor_sam2_ros():
    packages = {name.split('.')[0] for module in MODULES if module.startswith('sam2_core') for name in imports(module)}
    assert {name for name in packages if name in ('sam2_ros', 'rclpy') or name.endswith('_msgs')} == set()


def test_no_import_runs_in_a_circle():
    assert circles(OURS) == set()


def test_no_two_classes_have_one_name():
    places = defaultdict(set)
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(module)
    assert {name for name, modules in places.items() if len(modules) > 1} == set()


def test_no_class_is_larger_than_a_reader_can_hold():
    large = set()
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                lines = node.end_lineno - node.lineno + 1
                methods = sum(isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) for part in node.body)
                if lines > LINES_OF_A_CLASS or methods > METHODS_OF_A_CLASS:
                    large.add(f'{module}.{node.name}: {lines} lines, {methods} methods')
    assert large == set()


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
