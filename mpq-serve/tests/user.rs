//! Who cannot become another user.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Nobody, on all systems.
const OTHER_USER: u32 = 65_534;
const NOT_PERMITTED: i32 = 5;

/// The exit code of a server that is to become this user, and what it says; started by somebody who is not root.
fn refusal(user: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-serve"));
    command.args(["--listen", "127.0.0.1:0", "--random", "--user", user]);
    if nix::unistd::geteuid().is_root() {
        command.uid(OTHER_USER).gid(OTHER_USER);
    }
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn only_root_becomes_another_user_and_only_one_that_there_is() {
    let own = nix::unistd::User::from_uid(OTHER_USER.into());
    let nobody = own.unwrap().unwrap().name;
    let (code, said) = refusal(&nobody);
    assert_eq!(code, Some(NOT_PERMITTED), "{said}");
    assert!(said.contains("needs root"), "{said}");
    for (user, reason) in [
        ("no-such-user", "there is no such user"),
        ("root", "this is root"),
    ] {
        let (code, said) = refusal(user);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(reason), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
