"""Whatever a config can name is there once the package is imported, and nothing else was."""
import ast
import json
import subprocess
import sys
from pathlib import Path

import bevfusion_enhanced

PACKAGE = Path(bevfusion_enhanced.__file__).parent
PARTS = ('datasets', 'engine', 'evaluation', 'models', 'visualization')


def registered_classes():
    """(registry, class) of every class below a decorator `@REGISTRY.register_module()`."""
    found = []
    for path in [path for part in PARTS for path in sorted((PACKAGE / part).rglob('*.py'))]:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            for decorator in getattr(node, 'decorator_list', ()):
                call = getattr(decorator, 'func', decorator)
                if isinstance(call, ast.Attribute) and call.attr == 'register_module':
                    found.append((call.value.id, node.name))
    return found


def test_importing_the_package_registers_every_module():
    wanted = registered_classes()
    assert {'HOOKS', 'LOOPS', 'VISBACKENDS', 'MODELS', 'DATASETS'} <= {kind for kind, _ in wanted}
    script = ('import json, sys, bevfusion_enhanced, mmdet3d.registry as all_of\n'
              'wanted = json.loads(sys.stdin.read())\n'
              'print(json.dumps([name for kind, name in wanted '
              'if getattr(all_of, kind).get(name) is None]))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], text=True, check=True,
                          input=json.dumps(wanted), capture_output=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
