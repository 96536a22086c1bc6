"""Where volumes may appear."""

import pytest

from runstead.model.errors import Invalid
from runstead.services.mount_paths import MAX_VOLUMES, check_mount_paths


@pytest.mark.parametrize(
    "path",
    ["/data", "/data2", "/artifacts", "/mnt/a/b", "/workspace", "/root/.cache/huggingface", "/tmp/x", "/var/lib/x",
     "/home/user", "/opt/models", "/a b/ü", "/libraries", "/binary"],
)  # fmt: skip
def test_what_may_be_a_mount_path(path: str) -> None:
    check_mount_paths([path])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "absolute"),
        ("data", "absolute"),
        ("/", "root directory"),
        ("//data", "doubled"),
        ("/data/", "slash at its end"),
        ("/data//x", "doubled"),
        ("/data/./x", "'.'"),
        ("/data/../etc", "'..'"),
        ("/..", "'..'"),
        ("/da\0ta", "control characters"),
        ("/da\nta", "control characters"),
        ("/" + "x" * 256, "255"),
        ("/" + "/".join(["x" * 200] * 6), "1024"),
        *((f"/{name}", f"/{name}") for name in ("proc", "sys", "dev", "etc", "usr", "bin", "lib", "lib64", "run")),
        ("/proc/1", "/proc"),
        ("/etc/passwd.d", "/etc"),
        ("/runstead/env", "/runstead"),
        ("/root", "home directory"),
        ("/tmp", "not to be kept"),
        ("/var", "system"),
    ],
)
def test_what_may_be_none_is_refused_with_the_reason(path: str, words: str) -> None:
    with pytest.raises(Invalid, match="volumes") as caught:
        check_mount_paths([path])
    assert words in caught.value.message


def test_volumes_do_not_cover_each_other() -> None:
    check_mount_paths(["/data", "/data2", "/a/b", "/a/c"])
    for second in ("/data", "/data/x"):
        with pytest.raises(Invalid, match=r"volumes\[1\]"):
            check_mount_paths(["/data", second])
    with pytest.raises(Invalid, match=r"volumes\[1\]"):
        check_mount_paths(["/data/x", "/data"])


def test_there_is_a_limit() -> None:
    check_mount_paths([f"/v{i}" for i in range(MAX_VOLUMES)])
    with pytest.raises(Invalid):
        check_mount_paths([f"/v{i}" for i in range(MAX_VOLUMES + 1)])
