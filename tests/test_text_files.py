"""Text files are UTF-8 in every locale: a run may continue on a machine with another one."""

import ast

import pytest
from conftest import ROOT
from test_architecture import sources


def without_encoding(source: str) -> list[int]:
    """Return the lines of calls that open, read or write a text file in the encoding of the locale."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        match call.func:
            case ast.Name(id="open"):
                is_text = not any(isinstance(arg, ast.Constant) and "b" in str(arg.value) for arg in call.args[1:])
            case ast.Attribute(attr="read_text" | "write_text", value=owner):
                is_text = ast.unparse(owner) != "runtime"  # ccnet.engine.runtime.write_text, which is checked itself
            case _:
                is_text = False
        if is_text and not any(keyword.arg == "encoding" for keyword in call.keywords):
            found.append(call.lineno)
    return found


def test_every_text_file_has_an_encoding():
    paths = {path for path in sources().values() if "tests" not in path.relative_to(ROOT).parts}
    found = {str(path.relative_to(ROOT)): without_encoding(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("call", ["open(path, 'w', newline='')", "path.read_text()", "path.write_text(x)"])
def test_a_call_without_an_encoding_is_detected(call):
    assert without_encoding(call) == [1]
    assert without_encoding("open(path, 'rb'); open(path, encoding='utf-8')") == []
