"""The commands of protos/README.md generate code for each language.

They run on the files that `alignserve protos` writes. `make conformance` compiles what they generate for Go,
Java, Rust, Node.js, C++ and Ruby, in the clients.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import grpc_tools
import pytest
from alignserve.cli import main

from tests.contract.documents import code_blocks, read, rows
from tests.processes import BIN

pytestmark = pytest.mark.contract

README = read("protos/README.md")
COMMANDS = {row["language"]: row["command"] for row in rows(README, "language", "command", "google.rpc")}

# By language: a plugin that protoc finds in PATH, and a file that the command writes.
EXPECTED = {
    "Go": ("protoc-gen-go-grpc", "alignpb/align_service_grpc.pb.go"),
    "Java, Kotlin": ("protoc-gen-grpc-java", "com/alignserve/v1/AlignServiceGrpc.java"),
    "C++": ("grpc_cpp_plugin", "alignserve/v1/align_service.grpc.pb.h"),
    "C#": ("grpc_csharp_plugin", "AlignServiceGrpc.cs"),
    "Ruby": ("grpc_ruby_plugin", "alignserve/v1/align_service_services_pb.rb"),
    "PHP": ("grpc_php_plugin", "Alignserve/V1/AlignServiceClient.php"),
    "TypeScript": ("protoc-gen-es", "google/rpc/error_details_pb.ts"),
    "Python": ("python", "alignserve/v1/align_service_pb2_grpc.py"),
    "any, with buf": ("buf", "alignserve/v1/align_service_pb2.py"),
}
FETCHED = ("Go", "Java, Kotlin", "TypeScript")  # their plugins come from a registry, in tests of their own
JAVA_PLUGIN = "io.grpc:protoc-gen-grpc-java:1.79.0:exe"
MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
GO_PLUGINS = (
    "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2",
)
NODE_PACKAGES = "@bufbuild/protobuf@2 @bufbuild/protoc-gen-es@2 @grpc/proto-loader@0.8 @grpc/grpc-js@1.14"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `protos`, as the client writes them, and `gen`."""
    assert main(["protos", "--out", str(tmp_path / "protos")]) == 0
    (tmp_path / "gen").mkdir()
    (tmp_path / "buf.gen.yaml").write_text(code_blocks(README, "yaml")[0])
    return tmp_path


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for plugins, with a protoc that has `google/protobuf`, which some packages of it lack."""
    tools = tmp_path / "tools"
    tools.mkdir()
    if (protoc := shutil.which("protoc")) is not None:
        complete = tools / "protoc"
        complete.write_text(f'#!/bin/sh\nexec {protoc} "$@" -I {WELL_KNOWN}\n')
        complete.chmod(0o755)
    return tools


def shell(command: str, folder: Path, *path: Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a command in the folder, with these folders first in PATH."""
    search = os.pathsep.join(map(str, (*path, BIN, os.environ["PATH"])))
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env={**os.environ, "PATH": search},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def needs(*programs: str) -> None:
    """Skips the test on a machine that lacks one of the programs."""
    for program in programs:
        if shutil.which(program) is None and not (BIN / program).exists():
            pytest.skip(f"{program} is not installed")


def check(language: str, folder: Path, *path: Path) -> None:
    """Runs the command of a language and looks for a file that it writes."""
    done = shell(COMMANDS[language], folder, *path)

    assert done.returncode == 0, done.stderr
    assert (folder / "gen" / EXPECTED[language][1]).is_file()


def test_every_language_has_a_test() -> None:
    """A command that is added to the table needs a line above."""
    assert set(COMMANDS) == set(EXPECTED)


@pytest.mark.parametrize("language", [each for each in EXPECTED if each not in FETCHED])
def test_the_command_of_a_language_generates_its_code(language: str, folder: Path, tools: Path) -> None:
    """The command works as it is written, with protos and plugins only."""
    by_protoc = {"protoc", "buf"} & set(COMMANDS[language].split())  # buf has protoc generate Python
    needs(*(["protoc"] if by_protoc else []), EXPECTED[language][0])

    check(language, folder, tools)


@pytest.mark.long
def test_go_generates_into_a_module_of_its_own(folder: Path, tools: Path) -> None:
    """Both files are in one package, under the import path that `M` gives, and nothing else is generated."""
    needs("protoc", "go")
    for plugin in GO_PLUGINS:
        assert f"go install {plugin}" in README
        installed = shell(f"GOBIN={tools} go install {plugin}", folder, seconds=600)
        if installed.returncode:
            pytest.skip(f"go install failed: {installed.stderr[-200:]}")

    check("Go", folder, tools)

    written = sorted(str(path.relative_to(folder / "gen")) for path in (folder / "gen").rglob("*.go"))
    assert written == ["alignpb/align_service.pb.go", "alignpb/align_service_grpc.pb.go"]
    assert "package alignpb" in (folder / "gen/alignpb/align_service.pb.go").read_text()


@pytest.mark.long
def test_java_generates_with_the_plugin_of_maven(folder: Path, tools: Path) -> None:
    """The plugin is an executable in Maven's repository, which Maven runs by itself in a project."""
    needs("protoc", "mvn")
    machine = {"x86_64": "x86_64", "aarch64": "aarch_64"}.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        pytest.skip("this test knows only the plugins for Linux")
    copied = shell(
        f"mvn -q -B {MAVEN_COPY} -Dartifact={JAVA_PLUGIN}:linux-{machine} -DoutputDirectory={tools}",
        folder,
        seconds=600,
    )
    if copied.returncode:
        pytest.skip(f"mvn failed: {copied.stdout[-200:]}")
    (plugin,) = tools.glob("protoc-gen-grpc-java*")
    plugin.chmod(0o755)
    plugin.rename(tools / "protoc-gen-grpc-java")

    check("Java, Kotlin", folder, tools)


@pytest.mark.long
def test_typescript_and_node(folder: Path, tools: Path) -> None:
    """protoc-gen-es generates, and proto-loader keeps fields with underscores only with `keepCase`."""
    needs("protoc", "node", "npm")
    installed = shell(f"npm install --no-fund --no-audit {NODE_PACKAGES}", folder, seconds=600)
    if installed.returncode:
        pytest.skip(f"npm install failed: {installed.stderr[-200:]}")
    (snippet,) = code_blocks(README, "js")
    shown = "console.log(Object.keys(service.Classify.requestDeserialize(Buffer.from([0x20, 3]))).join());"

    check("TypeScript", folder, tools, folder / "node_modules/.bin")
    kept = shell(_node(snippet + shown), folder)
    lost = shell(_node(snippet.replace("keepCase: true, ", "") + shown), folder)

    assert "top_k" in kept.stdout.strip().split(","), kept.stderr
    assert "topK" in lost.stdout.strip().split(","), lost.stderr


def _node(program: str) -> str:
    return f"node - <<'END'\n{program}\nEND"


def test_the_rust_of_the_readme_is_what_prost_is_given() -> None:
    """`make conformance` builds the Rust client; this keeps the option that has no error without it."""
    (snippet,) = code_blocks(README, "rust")

    assert 'extern_path(".google.rpc.Status", "::tonic_types::Status")' in snippet
    assert "tonic_prost_build::configure()" in snippet
