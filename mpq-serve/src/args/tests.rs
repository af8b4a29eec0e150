//! What the command line takes, and what it refuses.

use super::*;

fn parse(line: &str) -> Result<Args, ErrorKind> {
    Args::read_from(line.split_whitespace()).map_err(|error| error.kind())
}

#[test]
fn the_definition_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn no_connections_are_no_limit() {
    for option in ["--max-connections", "--max-connections-address"] {
        for number in ["0", "x"] {
            let line = format!("mpq-serve d {option} {number}");
            let error = Args::read_from(line.split_whitespace()).unwrap_err();
            let said = error.to_string();
            assert!(
                said.contains("from 1 on; without the option there is no limit"),
                "{said}"
            );
        }
    }
}

#[test]
fn serving_by_default() {
    let args = parse("mpq-serve --random").unwrap();
    assert!(args.command.is_none());
    let serve = args.serve;
    assert_eq!(serve.listen, ["[::]:4433".parse().unwrap()]);
    assert_eq!((serve.random, serve.seed), (Some(100_000_000), 0));
    assert_eq!(serve.root(), None);
    assert_eq!(serve.etag, Tags::Time);
    assert_eq!(serve.lead, Duration::ZERO);
    assert_eq!(serve.grace, Duration::from_secs(10));
    assert_eq!(serve.limit_rate, None);
    assert_eq!(serve.send_timeout, Duration::from_secs(120));
    assert_eq!(serve.congestion, Congestion::default());
    assert_eq!(serve.resume, Resume::Careful);
    assert!(serve.migrate_to.is_empty());

    for line in ["mpq-serve dir", "mpq-serve --root dir"] {
        let serve = parse(line).unwrap().serve;
        assert_eq!(serve.root(), Some(Path::new("dir")), "{line}");
        assert_eq!(serve.random, None);
    }
    for (listen, expected) in [
        (":4433", "[::]:4433"),
        ("0.0.0.0:1", "0.0.0.0:1"),
        ("[::1]:2", "[::1]:2"),
    ] {
        let serve = parse(&format!("mpq-serve d --listen {listen}"))
            .unwrap()
            .serve;
        assert_eq!(serve.listen, [expected.parse().unwrap()]);
    }
    let several = "--listen [::]:1 --listen 0.0.0.0:1 --listen 0.0.0.0:2 --listen 127.0.0.1:3";
    let several = parse(&format!("mpq-serve d {several}"))
        .unwrap()
        .serve
        .listen;
    let wanted = ["[::]:1", "0.0.0.0:2", "127.0.0.1:3"];
    assert_eq!(
        several,
        wanted.map(|listen| listen.parse().unwrap()),
        "[::]:1 covers 0.0.0.0:1"
    );
    let serve = parse("mpq-serve d --listen localhost:3").unwrap().serve;
    assert!(serve.listen[0].ip().is_loopback() && serve.listen[0].port() == 3);
    let serve = parse("mpq-serve d --header Cache-Control:no-store --etag content").unwrap();
    assert_eq!(serve.serve.header[0].0, "cache-control");
    assert_eq!(serve.serve.header[0].1, "no-store");
    assert_eq!(serve.serve.etag, Tags::Content);

    let line = "mpq-serve d --listen 127.0.0.1:1 --migrate-to 127.0.0.2:4433 --migrate-to [::1]:4433 \
                --lead 500ms --outage 3s --move-in-process 2s --congestion olia \
                --resume aggressive";
    let serve = parse(line).unwrap().serve;
    assert_eq!(serve.congestion, Congestion::Olia);
    assert_eq!(serve.resume, Resume::Aggressive);
    assert_eq!(serve.migrate_to.len(), 2);
    assert_eq!(serve.outage, Some(Duration::from_secs(3)));
    assert_eq!(serve.move_in_process, Some(Duration::from_secs(2)));
}

#[test]
fn commands() {
    let line = "mpq-serve checkpoint --pid 7 --images d --migrate-to 192.0.2.1:443";
    let Some(Command::Checkpoint {
        pid, migrate_to, ..
    }) = parse(line).unwrap().command
    else {
        panic!("no checkpoint");
    };
    assert_eq!((pid, migrate_to.len()), (Some(7), 1));

    let line = "mpq-serve restore --images d --listen 192.0.2.1:443 --pid-file f";
    assert!(matches!(
        parse(line).unwrap().command,
        Some(Command::Restore {
            listen: Some(_),
            ..
        })
    ));
    let line = "mpq-serve release --images d --for 2m";
    let Some(Command::Release { valid, .. }) = parse(line).unwrap().command else {
        panic!("no release");
    };
    assert_eq!(valid, Duration::from_secs(120));
    let line = "mpq-serve move --pid 7 --to root@b --address 192.0.2.1:443 --dry-run";
    let Some(Command::Move(options)) = parse(line).unwrap().command else {
        panic!("no move");
    };
    assert_eq!(
        (options.transfer.to.as_str(), options.transfer.ssh.as_str()),
        ("root@b", "ssh")
    );
    assert!(options.transfer.dry_run && options.remote_program.is_none());
    let line = "mpq-serve dump --pid 7 --images d --control c --request 1-2";
    assert!(matches!(
        parse(line).unwrap().command,
        Some(Command::Dump { pid: 7, .. })
    ));
}

#[test]
fn wrong_use_is_refused() {
    for (line, kind) in [
        ("--cert c", ErrorKind::MissingRequiredArgument),
        ("--key k", ErrorKind::MissingRequiredArgument),
        ("--move-in-process 1s", ErrorKind::MissingRequiredArgument),
        ("checkpoint", ErrorKind::MissingRequiredArgument),
        (
            "checkpoint --pid 1 --pid-file f",
            ErrorKind::ArgumentConflict,
        ),
        ("checkpoint --pid 0", ErrorKind::ValueValidation),
        ("restore", ErrorKind::MissingRequiredArgument),
        (
            "restore --images d --rollback --force",
            ErrorKind::ArgumentConflict,
        ),
        ("release", ErrorKind::MissingRequiredArgument),
        (
            "move --to b --address 192.0.2.1:443",
            ErrorKind::MissingRequiredArgument,
        ),
        (
            "move --pid 1 --to b --address 192.0.2.1:53",
            ErrorKind::ValueValidation,
        ),
        (
            "move --pid 1 --to=-oProxyCommand=x --address 192.0.2.1:443",
            ErrorKind::ValueValidation,
        ),
        ("--migrate-to 0.0.0.0:4433", ErrorKind::ValueValidation),
        ("--migrate-to 192.0.2.1:0", ErrorKind::ValueValidation),
        ("--migrate-to 192.0.2.1:53", ErrorKind::ValueValidation),
        ("--migrate-to [ff02::1]:4433", ErrorKind::ValueValidation),
        ("--migrate-to example.org:4433", ErrorKind::ValueValidation),
        ("--listen 4433", ErrorKind::ValueValidation),
        ("--congestion reno", ErrorKind::ValueValidation),
        ("--resume slowly", ErrorKind::ValueValidation),
        ("--seed 1 restore --images d", ErrorKind::ArgumentConflict),
        ("", ErrorKind::MissingRequiredArgument),
        ("a b", ErrorKind::ArgumentConflict),
        ("a --root b", ErrorKind::ArgumentConflict),
        ("--random a", ErrorKind::ValueValidation),
        ("a --max-connections 0", ErrorKind::ValueValidation),
        ("a --limit-rate-total 0", ErrorKind::ValueValidation),
        ("a --listen :http", ErrorKind::ValueValidation),
        ("a --etag inode", ErrorKind::InvalidValue),
        ("a --header Age", ErrorKind::ValueValidation),
        ("a --header ETag:x", ErrorKind::ValueValidation),
        ("a --header Connection:x", ErrorKind::ValueValidation),
        ("a --header (:x", ErrorKind::ValueValidation),
        (
            "a --save-cert d --cert c --key k",
            ErrorKind::ArgumentConflict,
        ),
    ] {
        assert_eq!(
            parse(&format!("mpq-serve {line}")).err(),
            Some(kind),
            "{line}"
        );
    }
}

#[test]
fn no_more_is_taken_than_clients_can_be_told() {
    let options = |option: &str, count| format!(" {option} 192.0.2.1:443").repeat(count);
    let addresses = |option: &str, count| format!(" d{}", options(option, count));
    let name = |length| format!(" d --name {}", "a".repeat(length));
    let checkpoint = |count| format!(" checkpoint --pid 1{}", options("--migrate-to", count));
    for (good, bad, message) in [
        (
            addresses("--migrate-to", 8),
            addresses("--migrate-to", 9),
            "8 times",
        ),
        (addresses("--pool", 8), addresses("--pool", 9), "8 times"),
        (checkpoint(8), checkpoint(9), "8 times"),
        (name(255), name(256), "1 to 255 bytes, not 256"),
    ] {
        let read =
            |options: &str| Args::read_from(format!("mpq-serve{options}").split_whitespace());
        assert!(read(&good).is_ok(), "{good}");
        let error = read(&bad).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn the_help_names_every_exit_code_and_hides_the_helper() {
    let help = Args::command().render_long_help().to_string();
    for code in 0..=14 {
        assert!(help.contains(&format!("\n  {code}  ")), "{code}");
    }
    assert!(
        !help.contains("dump\n") && !help.contains("  dump "),
        "{help}"
    );
    assert!(!help.contains("  receive"), "{help}");
}
