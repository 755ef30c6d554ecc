"""What is shipped to run the server with: the example configuration, the unit, the images' recipes, the documentation."""

from __future__ import annotations

import configparser
import dataclasses
from pathlib import Path

import pytest

from antiphon import cli
from antiphon.commands.serve import ENGINE_OPTIONS, _configuration, _spec
from antiphon.engine_config import EngineConfig
from antiphon.errors import ConfigError
from antiphon.server.config import ServerConfig, read_config, with_options

ROOT = Path(__file__).resolve().parents[2]


def arguments(*argv):
    return cli.build_parser().parse_args(["serve", *argv])


def test_the_example_configuration_is_understood():
    config, engine_options = _configuration(arguments("--config", str(ROOT / "deploy/antiphon.yaml"), "--port", "9"))
    assert config.port == 9 and config.store.endswith(".db")
    assert EngineConfig(**engine_options).max_sequences == 16
    defaults = ServerConfig()
    for name, value in read_config(ROOT / "deploy/antiphon.yaml").items():
        if name not in ("store", "engine_options"):
            assert value == getattr(defaults, name), f"{name}: the file says that it holds the default"


def test_options_from_everywhere(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text("port: 1\nserved_name: a\ncors_origins: ['*']\nengine_options: {max_sequences: 3}\n")
    monkeypatch.setenv("ANTIPHON_API_KEY", "k")
    config, engine_options = _configuration(
        arguments("--config", str(path), "--port", "2", "--set", "chunk_growth=null", "--set", "kv_pages=50")
    )
    assert (config.port, config.served_name, config.cors_origins, config.chunk_growth) == (2, "a", ("*",), None)
    assert config.keys() == ("k",) and engine_options == {"max_sequences": 3, "kv_pages": 50}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prot": 1}, "unknown option 'prot'"),
        ({"port": "x"}, "port"),
        ({"port": 70_000}, "port"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"engine": "cloud"}, "engine"),
        ({"api_keys": "one"}, "list of texts"),
        ({"realtime_beta": 1}, "realtime_beta"),
        ({"request_timeout": True}, "request_timeout"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        with_options(ServerConfig(), options)


def test_wrong_command_lines(tmp_path, capsys):
    for argv in (
        ["--config", str(tmp_path / "none.yaml")],
        ["--set", "nothing"],
        ["--model", str(tmp_path / "none"), "--set", "engine_options={max_sequences: 2}"],
    ):
        assert cli.main(["serve", *argv]) == 2
        assert "antiphon: error" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="unknown engine options: speed"):
        _spec(arguments("--model", "x"), {"speed": 1})


def test_every_option_is_documented():
    text = (ROOT / "docs/serving.md").read_text()
    for field in dataclasses.fields(ServerConfig):
        assert f"`{field.name}`" in text, field.name
        assert field.name in ServerConfig.__doc__, field.name
    assert all(name in {field.name for field in dataclasses.fields(EngineConfig)} for name in ENGINE_OPTIONS)


def test_the_unit_runs_the_server():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(ROOT / "deploy/antiphon.service")
    command = unit["Service"]["ExecStart"].split()
    assert command[1] == "serve" and unit["Service"]["KillSignal"] == "SIGTERM"
    assert unit["Service"]["KillMode"] == "mixed", "draining needs the engine's process alive"
    assert arguments(*command[2:]).config == Path("/etc/antiphon/antiphon.yaml")
