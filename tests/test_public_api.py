"""`import diffjax` brings the functional core and nothing else."""

import subprocess
import sys

import pytest

import diffjax

CODE = """
import sys
import diffjax
heavy = {'beartype', 'flax', 'ml_collections', 'optax', 'orbax', 'tensorflow',
         'tensorflow_datasets', 'torch'}
print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))
defined = []
if 'absl.flags' in sys.modules:
    by_module = sys.modules['absl.flags'].FLAGS.flags_by_module_dict()
    defined = [flag.name for module, flags in by_module.items()
               for flag in flags if 'diffjax' in module]
print(defined)
"""


@pytest.fixture(scope="module")
def fresh_import():
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


def test_import_brings_no_framework(fresh_import):
    assert fresh_import[0] == "[]"


def test_import_defines_no_flag(fresh_import):
    assert fresh_import[1] == "[]"


def test_every_public_name_exists_and_is_documented():
    assert diffjax.__all__ == sorted(diffjax.__all__)
    for name in diffjax.__all__:
        assert getattr(diffjax, name).__doc__


def test_user_error_is_an_exception_of_its_own():
    assert issubclass(diffjax.UserError, Exception)
    assert not issubclass(diffjax.UserError, ValueError)
