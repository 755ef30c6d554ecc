"""The images' recipes and the unit, checked as far as a machine without a container engine can."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from antiphon import cli

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [ROOT / "deploy/Dockerfile.cpu", ROOT / "deploy/Dockerfile.cuda"]
PROJECT = (ROOT / "pyproject.toml").read_text()


def instructions(path):
    """(word, rest) of each instruction, continuation lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def stages(path):
    """Instructions by stage."""
    found = []
    for word, rest in instructions(path):
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def commands(stage):
    """Shell commands of a stage, as lists of words."""
    return [shlex.split(one) for word, rest in stage if word == "RUN" for one in rest.split("&&")]


@pytest.fixture(params=RECIPES, ids=lambda path: path.suffix[1:])
def recipe(request):
    return request.param


def test_sources_are_there_and_are_sent(recipe):
    ignored = (ROOT / ".dockerignore").read_text().split()
    for word, rest in instructions(recipe):
        if word == "COPY" and not rest.startswith("--from"):
            assert (ROOT / rest.split()[0]).exists(), rest
    needed = ("engine", "kernels", "csrc", "deploy", "CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE")
    for name in needed:
        assert (ROOT / name).exists() and name not in ignored, name


def test_what_is_installed_exists(recipe):
    build = commands(stages(recipe)[0])
    installs = [words for words in build if "install" in words and words[0].endswith("pip")]
    extras = {extra for words in installs for word in words for extra in re.findall(r"^\.\[(.*)\]$", word)}
    assert extras, "the project itself is installed"
    for extra in extras.pop().split(","):
        assert re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE), extra
    pinned = next(word for words in installs for word in words if word.startswith("torch=="))
    lowest = re.search(r'"torch>=([\d.]+)', PROJECT)[1]
    numbers = [tuple(map(int, text.split("."))) for text in (pinned[7:], lowest)]
    assert numbers[0] >= numbers[1], (pinned, lowest)


def test_packages_of_the_distribution_exist(recipe):
    if shutil.which("apt-cache") is None:
        pytest.skip("no apt-cache here")
    wanted = {
        word
        for stage in stages(recipe)
        for words in commands(stage)
        if words[:2] == ["apt-get", "install"]
        for word in words[2:]
        if not word.startswith("-")
    }
    assert "libgomp1" in wanted
    known = subprocess.run(["apt-cache", "show", "--no-all-versions", *wanted], capture_output=True, text=True, check=False)
    found = set(re.findall(r"^Package: (\S+)", known.stdout, re.MULTILINE))
    if not found:
        pytest.skip("apt's lists are not here")
    assert wanted <= found, wanted - found


def test_the_image_runs_the_server(recipe, monkeypatch):
    final = dict(stages(recipe)[-1])
    environment = dict(item.split("=", 1) for item in final["ENV"].split())
    monkeypatch.setenv("ANTIPHON_MODEL", environment["ANTIPHON_MODEL"])
    command = json.loads(final["ENTRYPOINT"]) + json.loads(final["CMD"])
    parsed = cli.build_parser().parse_args(command[1:])
    assert command[0] == "antiphon" and parsed.host == "0.0.0.0" and parsed.model == "/model"
    config = next(rest for word, rest in stages(recipe)[-1] if word == "COPY" and "yaml" in rest)
    assert str(parsed.config) == config.split()[1], "the configuration lies where the command looks for it"
    options = yaml.safe_load((ROOT / config.split()[0]).read_text())
    assert f":{options['port']}/ready" in final["HEALTHCHECK"] and final["EXPOSE"] == str(options["port"])
    check = json.loads(final["HEALTHCHECK"].partition("CMD ")[2])
    compile(check[2], "healthcheck", "exec")
    assert check[:2] == ["python", "-c"] and environment["PATH"].startswith("/opt/antiphon/bin:")
    user = next(words for words in commands(stages(recipe)[-1]) if words[0] == "useradd")
    assert final["USER"] == user[user.index("--uid") + 1] != "0"
    assert options["store"].startswith(user[user.index("--home-dir") + 1]), "conversations lie where the user may write"


def test_hadolint_has_nothing_to_say(recipe):
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", str(recipe)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_systemd_knows_every_line_of_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    unit = ROOT / "deploy/antiphon.service"
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "antiphon.service" in line]
    assert all("is not executable" in line for line in said), "all it may miss is the program itself"
    wrong = tmp_path / "antiphon.service"
    wrong.write_text(unit.read_text().replace("KillSignal=SIGTERM", "KillSignal=SIGNONE"))
    done = subprocess.run(["systemd-analyze", "verify", str(wrong)], capture_output=True, text=True, check=False)
    assert "SIGNONE" in done.stderr, "it does look at the values"
