"""A Node process with ``@go-go-scope/persistence-mongodb``, asked over its standard input and output."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bson import json_util

PACKAGE = "@go-go-scope/persistence-mongodb"
VERSION = "2.9.1"
DRIVER = "mongodb@6"
SCRIPT = Path(__file__).with_name("interop.mjs")

# Numbers and dates as the types that they are in the store: a double stays a float, dates are aware.
JSON = json_util.JSONOptions(json_mode=json_util.JSONMode.CANONICAL, tz_aware=True)


class NodeMissing(Exception):
    """Node or its packages are not available here."""


def install(cache: Path) -> Path:
    """Return a folder with the package and its driver, made once and kept in ``cache``.

    The package names a dependency that is not published and not needed at run time; npm would refuse it. Hence the
    tarball is unpacked beside the driver. The folder appears by a rename, whole or not at all.
    """
    target = cache / f"persistence-mongodb-{VERSION}"
    if target.exists():
        return target
    if not (shutil.which("node") and shutil.which("npm")):
        raise NodeMissing("node and npm are not on PATH")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        making = Path(folder) / "made"
        making.mkdir()
        (making / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        npm(making, "install", DRIVER, "--no-audit", "--no-fund", "--ignore-scripts", "--no-save")
        npm(making, "pack", f"{PACKAGE}@{VERSION}")
        (tarball,) = making.glob("*.tgz")
        home = making / "node_modules" / PACKAGE
        home.mkdir(parents=True)
        subprocess.run(
            ["tar", "--extract", "--gzip", f"--file={tarball}", f"--directory={making}"], timeout=60, check=True
        )
        shutil.copytree(making / "package", home, dirs_exist_ok=True)
        try:
            making.rename(target)
        except OSError:
            if not target.exists():  # another test process was quicker
                raise
    return target


def npm(folder: Path, *arguments: str) -> None:
    try:
        done = subprocess.run(
            ["npm", *arguments, "--loglevel=error"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NodeMissing(f"npm {arguments[0]} took longer than {error.timeout} seconds") from error
    if done.returncode:
        raise NodeMissing(f"npm {arguments[0]} failed: {done.stderr.strip()[-300:]}")


class Node:
    """One Node process on one database and prefix; ends with the ``with`` block."""

    def __init__(self, folder: Path, url: str, key_prefix: str = "") -> None:
        self._process = subprocess.Popen(
            ["node", str(SCRIPT), str(folder), url, key_prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NODE_NO_WARNINGS": "1"},
        )

    def __call__(self, op: str, *args: Any) -> Any:
        """Carry out ``op`` in Node and return its result; an error there is a ``RuntimeError`` here."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json_util.dumps({"op": op, "args": args}, json_options=JSON) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"Node ended with {self._process.wait(10)} in {op}")
        answer = json_util.loads(line, json_options=JSON)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()
