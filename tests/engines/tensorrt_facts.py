"""Names and parameters of TensorRT's Python bindings, read from their type stubs.

TensorRT's bindings cannot be imported without its libraries, which come from NVIDIA's index, but stubs that were
generated from them are on the public one. They are no valid Python, so they are read line by line.

    pip download --no-deps tensorrt-stubs==10.13.0.35.1 && unzip tensorrt_stubs-*.whl -d stubs
    python tests/engines/tensorrt_facts.py stubs > tests/engines/tensorrt_10.json
"""

import ast
import json
import re
import sys
from pathlib import Path

STUB = Path(__file__).parent / "typings" / "tensorrt" / "__init__.pyi"
Members = dict[str, list[list[str]]]  # methods with the parameters of each overload; attributes with none


def written() -> dict[str, Members]:
    """What the stub that mypy reads says, class by class; a nested class is `Outer.Inner`."""
    return _classes(ast.parse(STUB.read_text()), "")


def _classes(node: ast.Module | ast.ClassDef, prefix: str) -> dict[str, Members]:
    found: dict[str, Members] = {}
    for item in node.body:
        if isinstance(item, ast.ClassDef):
            found[prefix + item.name] = members = {}
            for part in item.body:
                if isinstance(part, ast.FunctionDef):
                    members.setdefault(part.name, []).append([a.arg for a in part.args.args[1:]])
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    members[part.target.id] = []
            found |= _classes(item, f"{prefix}{item.name}.")
    return found


def of_bindings(text: str) -> dict[str, Members]:
    """The same of the stubs of the bindings, whole classes."""
    found: dict[str, Members] = {}
    stack: list[tuple[int, str]] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip():
            while stack and indent <= stack[-1][0]:
                stack.pop()
        if match := re.match(r"\s*class (\w+)", line):
            stack.append((indent, ".".join([*(name for _, name in stack[-1:]), match[1]])))
            found[stack[-1][1]] = {}
        elif stack and indent == stack[-1][0] + 4:
            members = found[stack[-1][1]]
            if match := re.match(r"\s*def (\w+)\((.*)\)(?: ->.*)?:", line):
                members.setdefault(match[1], []).append(re.findall(r", (\w+)(?=:|$|,)", match[2]))
            elif match := re.match(r"\s*(\w+): [\w.]", line):
                members[match[1]] = []
    return found


def main(path: str) -> None:
    version = re.search(r"__version__: str = '([\d.]+)'", (Path(path) / "tensorrt" / "__init__.pyi").read_text())
    assert version, "the stubs do not say which TensorRT they are of"
    found = of_bindings((Path(path) / "tensorrt_bindings" / "tensorrt.pyi").read_text())
    print(json.dumps({"tensorrt": version[1], "classes": {name: found[name] for name in written()}}))


if __name__ == "__main__":
    main(sys.argv[1])
