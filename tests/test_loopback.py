"""Nothing here listens on an address that other machines reach, unless its user says so.

The files of infra/ are checked by infra/checks/exposure.py: this looks at the code, at `make ui`
and at the commands of the documentation.
"""

import ast
import re
from pathlib import Path

import pytest

from infra.checks.exposure import is_loopback
from infra.checks.shell import code_blocks, option, simple_commands

ROOT = Path(__file__).parents[1]
CODE = [
    path
    for folder in ("cdvae_ray", "jobs", "benchmarks", "infra")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERYWHERE = ("0.0.0.0", "::", "[::]", "*")
SERVERS = ("HTTPServer", "ThreadingHTTPServer", "TCPServer", "ThreadingTCPServer", "UDPServer")
HOST_OPTIONS = {"host", "dashboard_host", "node_ip_address", "bind", "server_name"}


def exposures(tree):
    """What code opens to others: line and what."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        for keyword in node.keywords:
            if keyword.arg in HOST_OPTIONS and isinstance(keyword.value, ast.Constant):
                value = keyword.value.value
                if isinstance(value, str) and not is_loopback(value):
                    yield node.lineno, f"{name}({keyword.arg}={value!r})"
        place = node.args[0] if node.args else None
        if (name in SERVERS or name in ("bind", "create_server")) and isinstance(place, ast.Tuple):
            host = place.elts[0]
            if not (isinstance(host, ast.Constant) and is_loopback(str(host.value))):
                yield node.lineno, f"{name} on {ast.unparse(host)}"
        words = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
        words = [word for word in words if isinstance(word, str)]
        if words and name in ("run", "Popen", "check_call", "check_output", "call"):
            yield from ((node.lineno, each) for each in command_exposures(" ".join(words)))


def command_exposures(text):
    """What the commands of a shell text open to others."""
    for words in simple_commands(text):
        # Whatever stands before it: a path, a variable of make, an assignment.
        names = [re.split(r"[/)]", word)[-1] for word in words]
        line = " ".join(words)
        if "mlflow" in names and {"ui", "server"} & set(names):
            host = option(words, "--host") or option(words, "-h") or "127.0.0.1"
            if not is_loopback(host):
                yield line
        if "ray" in names and "start" in names and "--head" in words:
            host = option(words, "--dashboard-host") or "127.0.0.1"
            if not is_loopback(host):
                yield line
        if "http.server" in names and not is_loopback(option(words, "--bind")):
            yield line
        for flag in ("-p", "--publish"):
            published = option(words, flag)
            if "docker" in names and published and not published.startswith("127.0.0.1:"):
                yield line
        if any(
            f"{word}".partition("=")[2] in EVERYWHERE or word in EVERYWHERE[:3] for word in words
        ):
            yield line


def test_code_opens_nothing_to_others():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in CODE
        for line, what in exposures(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []


def test_code_names_no_address_of_all_interfaces():
    """But for the checks that look for it."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in CODE
        if (ROOT / "infra" / "checks") not in path.parents
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in EVERYWHERE[:3]
    ]
    assert found == []


def test_documented_commands_open_nothing_to_others():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in DOCUMENTS
        for language in ("sh", "bash", "console", "shell", "")
        for line, block in code_blocks(path.read_text("utf-8"), language)
        if "'" not in re.sub(r"'[^'\n]*'", "", block)
        for what in command_exposures(block)
    ]
    assert found == []


def recipes(text):
    """The commands of a Makefile, by target."""
    commands, target = {}, ""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.match(r"([a-z][\w.-]*):", line):
            target = found[1]
        elif line.startswith("\t"):
            command = re.sub(r"\$\((\w+)\)", r"\1", line.strip().lstrip("@").replace("$$", "S"))
            commands.setdefault(target, []).append(command)
    return commands


def test_make_ui_listens_on_loopback_and_nothing_else_listens():
    commands = recipes((ROOT / "Makefile").read_text())
    (ui,) = [words for each in commands["ui"] for words in simple_commands(each)]
    assert is_loopback(option(ui, "--host"))
    found = [
        (target, each)
        for target, lines in commands.items()
        if target not in ("help", "python")
        for each in lines
        for _ in command_exposures(each)
    ]
    assert found == []


def test_a_local_ray_has_no_dashboard():
    tree = ast.parse((ROOT / "cdvae_ray" / "runtime" / "cluster.py").read_text())
    (init,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init"
    ]
    options = {each.arg: ast.unparse(each.value) for each in init.keywords}
    assert options["include_dashboard"] == "False if address == 'local' else None"
    elsewhere = [
        path.name
        for path in CODE
        if path.name != "cluster.py" and re.search(r"\bray\.init\(", path.read_text())
    ]
    assert elsewhere == []


@pytest.mark.parametrize(
    "code",
    [
        "ray.init(dashboard_host='0.0.0.0')",
        "ray.init(dashboard_host='::')",
        "HTTPServer(('', 80), Handler)",
        "http.server.ThreadingHTTPServer(('0.0.0.0', 80), Handler)",
        "listener.bind((host, 0))",
        "uvicorn.run(app, host='10.0.0.1')",
        "subprocess.run(['mlflow', 'ui', '--host', '0.0.0.0'])",
        "subprocess.run([*command, 'ray', 'start', '--head', '--dashboard-host=0.0.0.0'])",
    ],
)
def test_code_that_would_be_open_is_seen(code):
    assert list(exposures(ast.parse(code)))


@pytest.mark.parametrize(
    "command",
    [
        "mlflow ui --host 0.0.0.0",
        "BIN/mlflow server --host=10.0.0.1 --port 5000",
        "ray start --head --dashboard-host 0.0.0.0",
        "python -m http.server",
        "python -m http.server --bind 0.0.0.0",
        "docker run -p 5000:5000 image",
        "tensorboard --host 0.0.0.0",
        "jupyter lab --ip=0.0.0.0",
        "cd x && mlflow ui --host ::",
    ],
)
def test_a_command_that_would_be_open_is_seen(command):
    assert list(command_exposures(command))


@pytest.mark.parametrize(
    "command",
    [
        "mlflow ui",
        "mlflow ui --host 127.0.0.1",
        "ray start --head --dashboard-host 127.0.0.1",
        "ray start --address 10.0.0.1:6379",
        "python -m http.server --bind 127.0.0.1",
        "docker run -p 127.0.0.1:5000:5000 image",
    ],
)
def test_a_command_on_loopback_is_taken(command):
    assert not list(command_exposures(command))
