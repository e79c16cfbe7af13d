"""What ``hf-elm demo`` refuses before it loads anything, each in one line."""

import importlib.util
import json
import re
import socket
import sys

import pytest

from hf_elm.command_line import main
from hf_elm.demo.server import free_port
from hf_elm.families import FAMILIES


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "monarc"}))
    return tmp_path


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["demo", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-elm demo: error: ")
    return line


def pretend(monkeypatch, **packages):
    """These packages are there or not, whatever is installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: packages[name] if name in packages else find(name))


def test_arguments(folder, capsys):
    assert "checkpoint=<folder or Hub id>" in refused(capsys)
    assert "takes key=value pairs" in refused(capsys, "stray", f"checkpoint={folder}")
    assert "does not exist" in refused(capsys, f"checkpoint={folder}/none")
    assert "port must be from 0 to 65535" in refused(capsys, f"checkpoint={folder}", "port=70000")
    assert "host is empty" in refused(capsys, f"checkpoint={folder}", "host=")
    assert "prot" in refused(capsys, f"checkpoint={folder}", "prot=1")


def test_a_port_in_use_is_named_with_the_remedy(folder, taken, capsys, monkeypatch):
    pretend(monkeypatch, gradio=True, matplotlib=True)
    line = refused(capsys, f"checkpoint={folder}", f"port={taken}")
    assert f"port={taken} is in use on 127.0.0.1" in line
    assert f"port={taken + 1}" in line
    assert "port=0" in line


@pytest.mark.parametrize("package", ["gradio", "matplotlib"])
def test_a_missing_package_is_named_with_its_extra(folder, package, capsys, monkeypatch):
    pretend(monkeypatch, **{"gradio": True, "matplotlib": True, package: None})
    assert f'the package {package} is missing; install it with pip install "hf_elm[demo]".' in refused(
        capsys, f"checkpoint={folder}"
    )


def test_ports(taken):
    assert free_port("127.0.0.1", 0) > 1023
    with pytest.raises(ValueError, match="is in use"):
        free_port("127.0.0.1", taken)
    with pytest.raises(ValueError, match="not an address of this machine"):
        free_port("192.0.2.7", 0)  # reserved for documentation: no machine has it
    with pytest.raises(ValueError, match="not an address of this machine"):
        free_port("no such host", 0)


def test_every_family_has_a_page():
    for name, family in FAMILIES.items():
        module, function = family.demo.split(":")
        assert (importlib.util.find_spec(module) is not None, function) == (True, "load_tabs"), name


def test_pages_are_imported_without_gradio_and_name_it_when_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    for module in ("page", "step_view", "monarc_tabs", "nano_ebm_tabs", "m2_bert_tabs"):
        monkeypatch.delitem(sys.modules, f"hf_elm.demo.{module}", raising=False)
        importlib.import_module(f"hf_elm.demo.{module}")
    from hf_elm.demo.page import build_page

    with pytest.raises(
        ImportError, match=re.escape('package gradio is missing; install it with pip install "hf_elm[demo]"')
    ):
        build_page("runs/first", "", [])
