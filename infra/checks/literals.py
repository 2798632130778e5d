"""No password, key or token stands in a file: only the names of places that hold them."""

from __future__ import annotations

import re

from infra.checks.files import Fault, Files

_SHAPES = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Google API key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Google service account's key": r"\"private_key(?:_id)?\"\s*:",
    "a GitHub token": r"\bgh[pousr]_[0-9A-Za-z]{30,}|\bgithub_pat_\w{20,}",
    "a Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "a Hugging Face token": r"\bhf_[0-9A-Za-z]{30,}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}",
    "a password in an address": r"\w://[^/\s:@]+:[^/\s@]+@",
    "a long hexadecimal secret": r"(?<!sha256:)(?<![0-9a-f])[0-9a-f]{32,}(?![0-9a-f])",
    "a long random string": r"(?<![\w/+])(?=[\w/+]*\d)(?=[\w/+]*[a-z])(?=[\w/+]*[A-Z])"
    r"(?![\w/+]*/\w*/)[\w/+]{40,}={0,2}(?![\w/+])",
}
_ASSIGNED = re.compile(
    r"(?i)[\w-]*(?:password|passwd|secret_?key|access_?key|api_?key|auth_?token|pgpassword)"
    r"[\"']?\s*[=:]\s*(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;}]+)"
)
# With a name in two parts, as in Kubernetes: {name: X_PASSWORD, value: ...}
_NAMED = re.compile(
    r"(?i)name:\s*[\w-]*(?:password|secret|token|key)\s*,?\s*"
    r"value:\s*(?P<value>\"[^\"]*\"|[^\s,}]+)"
)
_REFERENCE = re.compile(r"\$|/run/secrets/|~/|file://|SUBSTITUTED|\{|\[")
"""What may stand there: a variable, a file, or a mapping that says where the value comes from."""


def literals(files: Files) -> list[Fault]:
    """No text has the shape of a secret, or gives one a literal value."""
    faults = []
    for path, text in files.items():
        if not path.startswith("infra/"):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found = [name for name, shape in _SHAPES.items() if re.search(shape, line)]
            # The value of a named variable may stand on the next line.
            pair = " ".join(text.splitlines()[number - 1 : number + 1])
            for match in (*_ASSIGNED.finditer(line), *_NAMED.finditer(pair)):
                value = match["value"].strip("\"'")
                if value and not _REFERENCE.match(value):
                    found.append(f"the literal in `{match[0][:20]}...`")
            faults += [
                Fault(
                    what=f"{path}:{number}",
                    got=name,
                    expected="no secrets in files",
                    remedy="take it from the environment or a secret, and revoke it if it is real",
                )
                for name in dict.fromkeys(found)
            ]
    return faults
