"""Files of rows and tasks, written where a test runs."""

import json
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def write(tmp_path):
    """write("a/b.jsonl", rows), write("c.yaml", mapping) or write("d.txt", text) -> its path."""

    def put(name: str, content, *, newline: str = "\n") -> str:
        path = Path(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".yaml", ".yml"):
            content = yaml.safe_dump(content)
        elif path.suffix in (".jsonl", ".ndjson") and not isinstance(content, str | bytes):
            content = "".join(json.dumps(record) + newline for record in content)
        elif path.suffix == ".json" and not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return put


@pytest.fixture
def pairs():
    """pairs(3, "add") -> three distinct prompt and completion rows."""

    def make(count: int, name: str = "row", start: int = 0) -> list[dict]:
        numbers = range(start, start + count)
        return [{"prompt": f"{name} {i}?", "completion": f"{name} says {i}"} for i in numbers]

    return make
