"""A command as somebody at a terminal runs it, but in this process: what it printed, and its exit code."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from app.cli import cli
from app.cli.failing import guarded


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def holdfast(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run(*arguments: Any) -> Answer:
        capfd.readouterr()
        code = guarded(lambda: cli.main([str(argument) for argument in arguments], standalone_mode=False))
        return Answer(code, *capfd.readouterr())

    return run
