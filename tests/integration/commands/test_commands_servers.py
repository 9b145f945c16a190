"""What a shell is told of servers and users: exit codes, the missing right, and who grants it. On a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from goscope_django.mongodb import MongoDBAdapter
from tests.support.manage import Ended, manage
from tests.support.mongod import ReplicaSet, replica_set

pytestmark = pytest.mark.slow

LEAST = ["find", "insert", "update", "remove", "listIndexes"]


def role(name: str, actions: list[str], *collections: str) -> dict[str, Any]:
    granted = [{"resource": {"db": "shop", "collection": one}, "actions": actions} for one in collections or ("",)]
    return {"createRole": name, "privileges": granted, "roles": []}


def user(name: str, *roles: Any) -> dict[str, Any]:
    return {"createUser": name, "pwd": "pa55", "roles": list(roles)}


@pytest.fixture(scope="module")
def locked() -> Iterator[ReplicaSet]:
    """A replica set with access control, whose database ``shop`` has our indexes."""
    with replica_set(members=1) as server:
        with server.client() as client:
            MongoDBAdapter(client["shop"]).connect()
        shop = {"db": "shop"}
        server.demand_passwords(
            user("root", "root"),
            role("four", LEAST[:4]),
            role("least", LEAST),
            role("makers", [*LEAST, "createIndex"]),
            role("partly", LEAST, "go_goscope_locks", "go_goscope_cache"),
            user("writer", {"role": "readWrite", **shop}),
            user("reader", {"role": "read", **shop}),
            *(user(name, name) for name in ("four", "least", "makers", "partly")),
            user("nobody"),
        )
        yield server


def address(server: ReplicaSet, name: str, password: str = "pa55") -> str:
    return (
        f"mongodb://{name}:{password}@127.0.0.1:{server.ports[0]}/shop?authSource=admin&serverSelectionTimeoutMS=5000"
    )


def status(url: str) -> tuple[Ended, Ended]:
    return manage(url, "goscope_status", "--json"), manage(url, "goscope_status")


@pytest.mark.parametrize("name", ["root", "writer", "makers", "least"])
def test_the_least_rights_suffice(name: str, locked: ReplicaSet) -> None:
    ended, shown = status(address(locked, name))
    assert (ended.code, shown.code) == (0, 0), ended.err
    server = ended.document["server"]
    assert server["faults"] == [] and server["indexes_ok"] is True
    told = " ".join(server["notices"])
    assert ("createIndex" in told) is (name == "least") and ("change streams" in told) is (name in ("least", "makers"))
    assert "end of life on 2025-07-31" in told, "6.0 gets no fixes any more"
    assert "end of life" in shown.out


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("reader", "insert, update, remove, createIndex"),
        ("four", "listIndexes, createIndex"),
        ("partly", "find, insert, update, remove, listIndexes in go_goscope_circuit, go_goscope_checkpoints"),
    ],
)
def test_missing_rights_are_named_with_the_command_that_grants_them(name: str, lacks: str, locked: ReplicaSet) -> None:
    ended, shown = status(address(locked, name))
    assert (ended.code, shown.code) == (1, 1)
    (fault,) = ended.document["server"]["faults"]
    assert lacks in fault and f"user '{name}'" in fault
    assert f'db.getSiblingDB("admin").grantRolesToUser("{name}", [{{ role: "readWrite", db: "shop" }}])' in fault
    assert lacks in shown.err and "Traceback" not in shown.err and "pa55" not in shown.out + shown.err + ended.out
    checked = manage(address(locked, name), "check", "--database", "default")
    assert "goscope.W018" in checked.out + checked.err and lacks in checked.out + checked.err


def test_what_could_not_be_read_is_not_shown_as_zero(locked: ReplicaSet) -> None:
    ended, shown = status(address(locked, "partly"))
    document = ended.document
    assert document["locks"]["total"] == 0 and document["tasks"]["total"] is None
    assert "go_goscope_tasks" in document["tasks"]["error"] and "right to find" in document["tasks"]["error"]
    assert "Tasks        not known" in shown.out and "Locks        0 held" in shown.out


@pytest.mark.parametrize(
    ("name", "password", "named"),
    [("writer", "wrong", "refuses the user"), ("unknown", "pa55", "refuses the user"), ("nobody", "pa55", "no rights")],
)
def test_refused_users_are_2_and_nothing_is_shown(name: str, password: str, named: str, locked: ReplicaSet) -> None:
    ended, shown = status(address(locked, name, password))
    assert (ended.code, shown.code) == (2, 2)
    document = ended.document
    assert document["reachable"] is False and document["locks"]["total"] is None
    assert named in document["problems"][0] and named in shown.err
    assert " held" not in shown.out and "Traceback" not in shown.err
    assert ("Check the user" in shown.err) is (name != "nobody")
    assert "goscope.W01" in manage(address(locked, name, password), "check", "--database", "default").err


@pytest.mark.parametrize(
    ("name", "password", "advice"),
    [
        ("writer", "wrong", "Check the user"),
        ("four", "pa55", "lists the rights"),
        ("nobody", "pa55", "lists the rights"),
    ],
)
def test_other_commands_do_not_ask_whether_a_server_runs_that_has_answered(
    name: str, password: str, advice: str, locked: ReplicaSet
) -> None:
    ended = manage(address(locked, name, password), "goscope_indexes", "ensure")
    assert ended.code == 2
    assert advice in ended.err and "Is the server running" not in ended.err
    assert "Traceback" not in ended.err and "pa55" not in ended.err


def test_without_credentials_that_is_said(locked: ReplicaSet) -> None:
    ended, _ = status(f"mongodb://127.0.0.1:{locked.ports[0]}/shop")
    assert ended.code == 2 and ended.document["reachable"] is False
    assert "no user and password" in ended.document["error"]


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv"])
def test_a_name_that_can_not_be_resolved_is_2_and_nothing_is_shown(scheme: str) -> None:
    ended, shown = status(f"{scheme}://nowhere.invalid/shop")
    assert (ended.code, shown.code) == (2, 2)
    assert ended.document["reachable"] is False and " held" not in shown.out
    assert "nowhere.invalid" in shown.err and "Traceback" not in shown.err


def test_with_the_strict_stable_api_all_is_well(locked: ReplicaSet) -> None:
    ended = manage(address(locked, "writer"), "goscope_status", "--json", strict=True)
    assert ended.code == 0, ended.err
    assert ended.document["server"]["version"] == "6.0" and ended.document["server"]["indexes_ok"] is True
    checked = manage(address(locked, "writer"), "check", "--database", "default", strict=True)
    assert "W010" not in checked.err
    refused = manage(address(locked, "reader"), "goscope_status", "--json", strict=True)
    assert refused.code == 1
    assert "find and update" in " ".join(refused.document["server"]["faults"])
