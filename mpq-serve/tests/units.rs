//! The units for systemd that come with the program.

use std::fs;
use std::path::Path;
use std::process::Command;

const SERVICE: &str = include_str!("../systemd/mpq-serve.service");
const MOVED: &str = include_str!("../systemd/mpq-serve-moved.conf");
const SOCKET: &str = include_str!("../systemd/mpq-serve.socket");

/// The value of a key, if the unit has it.
fn value<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = unit.lines();
    lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// systemd makes each of these a filter of system calls or a mount namespace (systemd.exec(5)), with which a server cannot
/// be dumped: CRIU says "suspending seccomp failed" for the former.
#[test]
fn a_server_of_the_unit_can_be_dumped() {
    let filters = [
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "PrivateDevices",
        "ProtectClock",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "SystemCallArchitectures",
        "SystemCallFilter",
        "SystemCallLog",
    ];
    let mounts = [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "InaccessiblePaths",
        "PrivateMounts",
        "PrivateTmp",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "TemporaryFileSystem",
    ];
    for key in filters.iter().chain(&mounts) {
        assert_eq!(value(SERVICE, key), None, "{key}");
    }
}

#[test]
fn the_units_are_what_systemd_understands() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED: there is no systemd-analyze here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // It wants a program that is there.
    let program = value(SERVICE, "ExecStart")
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let service = SERVICE.replace(program, env!("CARGO_BIN_EXE_mpq-serve"));
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let units = [
        write("mpq-serve.service", &service),
        write("mpq-serve.socket", SOCKET),
        // As systemd-run makes it.
        write(
            "mpq-serve-moved.service",
            &format!(
                "{MOVED}ExecStart={} receive\n",
                env!("CARGO_BIN_EXE_mpq-serve")
            ),
        ),
    ];
    let verify = |units: &[&Path]| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(["verify", "--man=no"]).args(units).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let folder = folder.path().to_str().unwrap();
        // What it says of other units is not meant.
        let ours = |line: &&str| line.contains(folder) || line.contains("mpq-serve");
        said.lines()
            .filter(ours)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        verify(&units.each_ref().map(|unit| unit.as_path())),
        [""; 0]
    );
    let wrong = write(
        "mpq-serve-wrong.service",
        &service.replace("RuntimeDirectory=", "RuntimeDir="),
    );
    assert_ne!(
        verify(&[&wrong]),
        [""; 0],
        "it would not see a key that does not exist"
    );
}
