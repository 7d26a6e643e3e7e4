"""The device's wheel: complete without coordinator and simulation, and asking for what it uses."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "packaging/client"
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text())
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ABSENT = {"server", "sim"}


def included():
    """The wheel's modules, by name, with their files."""
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    found = {}
    for source, place in target["force-include"].items():
        path = (FOLDER / source).resolve()
        assert path.exists(), source
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            inside = Path(place) / file.relative_to(path) if path.is_dir() else Path(place)
            name = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
            if file.suffix == ".py":
                found[name] = file
    return found


def imports(file):
    """What a module imports of ours, wherever in it, as (module, name)."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def test_whatever_a_module_imports_is_in_the_wheel():
    modules = included()
    missing = [
        f"{name}: {wanted}"
        for name, file in modules.items()
        for wanted, of_it in imports(file)
        if wanted.startswith("sordino.")
        and not (wanted in modules or f"{wanted}.{of_it}" in modules or wanted == "sordino.cli")
    ]
    assert missing == []
    assert not {name.split(".")[1] for name in modules} & ABSENT


def test_its_requirements_are_the_whole_packages():
    whole = {
        Requirement(line).name: line
        for line in [*WHOLE["dependencies"], *WHOLE["optional-dependencies"]["client"]]
    }
    mine = {Requirement(line).name: line for line in PROJECT["project"]["dependencies"]}
    assert mine == {name: line for name, line in whole.items() if name != "peft"}
    assert PROJECT["project"]["version"] == WHOLE["version"]
    assert PROJECT["project"]["requires-python"] == WHOLE["requires-python"]


@pytest.mark.slow
def test_the_wheel_is_built_and_runs_alone(tmp_path):
    """Needs the package index, for the build's own requirements."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    built = subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, FOLDER],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        pytest.skip(f"not run, the wheel can't be built here: {built.stderr[-200:]}")
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", site, wheel], check=True)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    code = (
        f"import sys; sys.path[:0] = [{str(site)!r}]; sys.path += {packages!r}\n"
        "import sordino.cli.on_device as it, sordino\n"
        f"assert list(sordino.__path__) == [{str(site / 'sordino')!r}], sordino.__path__\n"
        "sys.argv = ['sordino', 'device', '--calibrate', '--folder', sys.argv[1]]\n"
        "it.main()\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    (home / "device.toml").write_text('[node]\nuser = "hamlet/HAMLET"\n')
    # -S: without the path files of this environment, which name the whole package.
    command = [sys.executable, "-S", "-c", code, str(home)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tokens a second" in done.stdout
