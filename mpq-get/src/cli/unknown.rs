//! A word on each of curl's options that mpq-get has not.
//!
//! No option of a similar name is offered instead: for `--include` that was `--insecure`.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use super::args::Args;

/// The options, by why they are not there.
const CURLS: &[(&str, &[&str])] = &[
    (
        "mpq-get only downloads, and sends nothing",
        &[
            "-a",
            "--append",
            "--crlf",
            "-d",
            "--data",
            "--data-ascii",
            "--data-binary",
            "--data-raw",
            "--data-urlencode",
            "--expect100-timeout",
            "-F",
            "--form",
            "--form-escape",
            "--form-string",
            "-G",
            "--get",
            "-T",
            "--upload-file",
            "--url-query",
        ],
    ),
    (
        "mpq-get asks by GET",
        &["-X", "--request", "-I", "--head", "--request-target"],
    ),
    (
        "mpq-get sends no header, cookie or password of yours",
        &[
            "-H",
            "--header",
            "-A",
            "--user-agent",
            "-e",
            "--referer",
            "-b",
            "--cookie",
            "-c",
            "--cookie-jar",
            "-j",
            "--junk-session-cookies",
            "-u",
            "--user",
            "-n",
            "--netrc",
            "--netrc-file",
            "--netrc-optional",
            "--basic",
            "--anyauth",
            "--digest",
            "--ntlm",
            "--ntlm-wb",
            "--negotiate",
            "--oauth2-bearer",
            "--aws-sigv4",
            "--delegation",
            "--service-name",
            "--login-options",
            "--sasl-authzid",
            "--sasl-ir",
            "--compressed",
        ],
    ),
    (
        "mpq-get follows no redirect; it says where the server sends you, for you to ask there",
        &[
            "-L",
            "--location",
            "--location-trusted",
            "--max-redirs",
            "--post301",
            "--post302",
            "--post303",
            "--proto-redir",
        ],
    ),
    (
        "mpq-get shows no header; -v tells what happens",
        &["-i", "--include", "-D", "--dump-header", "--styled-output"],
    ),
    (
        "mpq-get gets one whole file from one URL; run it once for each",
        &[
            "-:",
            "--next",
            "-Z",
            "--parallel",
            "--parallel-immediate",
            "--parallel-max",
            "--fail-early",
            "--rate",
            "--remote-name-all",
            "-r",
            "--range",
            "-z",
            "--time-cond",
            "--etag-compare",
            "--etag-save",
            "--metalink",
        ],
    ),
    (
        "mpq-get connects to the server itself: QUIC goes through no proxy of curl's",
        &[
            "-x",
            "--proxy",
            "-U",
            "--proxy-user",
            "-p",
            "--proxytunnel",
            "--preproxy",
            "--noproxy",
            "--socks4",
            "--socks4a",
            "--socks5",
            "--socks5-hostname",
            "--proxy1.0",
            "--haproxy-protocol",
            "--suppress-connect-headers",
        ],
    ),
    (
        "QUIC has TLS 1.3, with the ciphers and groups that rustls chooses",
        &[
            "-1",
            "--tlsv1",
            "--tlsv1.0",
            "--tlsv1.1",
            "--tlsv1.2",
            "-2",
            "--sslv2",
            "-3",
            "--sslv3",
            "--tls-max",
            "--ciphers",
            "--tls13-ciphers",
            "--curves",
            "--ssl",
            "--ssl-reqd",
            "--ssl-allow-beast",
            "--false-start",
            "--no-sessionid",
            "--egd-file",
            "--random-file",
            "--engine",
            "--tlsuser",
            "--tlspassword",
            "--tlsauthtype",
        ],
    ),
    (
        "whom to trust is said by --cacert or --pin; mpq-get shows no certificate of its own",
        &[
            "--capath",
            "--crlfile",
            "--pinnedpubkey",
            "--cert-status",
            "-E",
            "--cert",
            "--cert-type",
            "--key",
            "--key-type",
            "--pass",
            "--ssl-no-revoke",
            "--ssl-revoke-best-effort",
            "--ssl-auto-client-cert",
        ],
    ),
    (
        "mpq-get speaks HTTP/3 over UDP, and nothing else",
        &[
            "-0",
            "--http1.0",
            "--http1.1",
            "--http2",
            "--http2-prior-knowledge",
            "--http0.9",
            "--proto",
            "--proto-default",
            "--alt-svc",
            "--hsts",
            "--tcp-fastopen",
            "--tcp-nodelay",
            "--no-keepalive",
            "--keepalive-time",
            "--unix-socket",
            "--abstract-unix-socket",
            "--no-alpn",
            "--no-npn",
            "--raw",
            "--tr-encoding",
            "--ignore-content-length",
            "-l",
            "--list-only",
            "-B",
            "--use-ascii",
            "-Q",
            "--quote",
            "-P",
            "--ftp-port",
            "-t",
            "--telnet-option",
            "--pubkey",
            "--hostpubmd5",
            "--hostpubsha256",
            "--krb",
        ],
    ),
    (
        "mpq-get uses every interface, and addresses of both kinds; --interface and --resolve choose",
        &[
            "-4",
            "--ipv4",
            "-6",
            "--ipv6",
            "--local-port",
            "--happy-eyeballs-timeout-ms",
        ],
    ),
    (
        "mpq-get asks the name servers of the system; --resolve gives an address",
        &[
            "--dns-interface",
            "--dns-ipv4-addr",
            "--dns-ipv6-addr",
            "--dns-servers",
            "--doh-url",
            "--doh-insecure",
            "--doh-cert-status",
        ],
    ),
    (
        "-v and --json tell what happens",
        &[
            "-w",
            "--write-out",
            "--trace",
            "--trace-ascii",
            "--trace-time",
            "--libcurl",
            "--stderr",
        ],
    ),
    (
        "-o names a file in whatever folder is there, and -O one as the URL does; what has come stays in FILE.part",
        &[
            "--output-dir",
            "--create-dirs",
            "--create-file-mode",
            "-J",
            "--remote-header-name",
            "--no-clobber",
            "--remove-on-error",
            "--xattr",
        ],
    ),
    (
        "mpq-get waits 1 s, 2 s, 4 s... between attempts; --retry and --retry-max-time limit them",
        &["--retry-delay", "--retry-all-errors"],
    ),
    (
        "mpq-get takes what the links carry; mpq-serve --limit-rate limits at the other end",
        &["--limit-rate", "--max-filesize"],
    ),
    (
        "mpq-get reads no file of options; put them on the command line",
        &["-K", "--config"],
    ),
    (
        "a server's error has no file, and exit code 22",
        &["--fail-with-body"],
    ),
    ("-s shows no progress", &["-#", "--progress-bar"]),
    ("--help is all that there is", &["-M", "--manual"]),
];

/// The beginnings of names of options that are of a kind each.
const KINDS: &[(&str, &str)] = &[
    (
        "--proxy-",
        "mpq-get connects to the server itself: QUIC goes through no proxy of curl's",
    ),
    (
        "--socks",
        "mpq-get connects to the server itself: QUIC goes through no proxy of curl's",
    ),
    ("--ftp-", "mpq-get speaks HTTP/3 over UDP, and nothing else"),
    (
        "--mail-",
        "mpq-get speaks HTTP/3 over UDP, and nothing else",
    ),
    (
        "--tftp-",
        "mpq-get speaks HTTP/3 over UDP, and nothing else",
    ),
];

/// What was typed. Ends the program if that cannot be read, or asks for help.
pub fn read() -> Args {
    Args::try_parse().unwrap_or_else(|error| explained(error).exit())
}

/// What is to be told of a command line that cannot be read.
fn explained(error: clap::Error) -> clap::Error {
    let (ErrorKind::UnknownArgument, Some(ContextValue::String(given))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    else {
        return error;
    };
    let name = given.split('=').next().unwrap_or(given);
    let message = match word(name) {
        Some(why) => format!("there is no {name} as curl has it: {why}"),
        None => format!("there is no {name}"),
    };
    // A new one, as clap has put its guess into the usage, too.
    Args::command().error(ErrorKind::UnknownArgument, message)
}

/// Why there is no such option; `None` if curl has none either.
fn word(name: &str) -> Option<&'static str> {
    let mut groups = CURLS.iter();
    let listed = groups.find(|(_, options)| options.contains(&name));
    let mut kinds = KINDS.iter();
    let mut kind = || kinds.find(|(beginning, _)| name.starts_with(beginning));
    listed
        .map(|(why, _)| *why)
        .or_else(|| kind().map(|(_, why)| *why))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn said(line: &[&str]) -> String {
        let error = Args::try_parse_from([&["mpq-get"], line].concat()).unwrap_err();
        let error = explained(error);
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn curls_options_have_a_word_each() {
        for (line, why) in [
            (&["--include", "h/a"][..], "shows no header"),
            (&["-i", "h/a"], "shows no header"),
            (&["-sLO", "h/a"], "no -L as curl has it"),
            (&["--header=a: b", "h/a"], "no --header as curl has it"),
            (&["-X", "POST", "h/a"], "by GET"),
            (&["-d", "x", "h/a"], "sends nothing"),
            (&["-x", "p:1", "h/a"], "no proxy"),
            (&["--proxy-insecure", "h/a"], "no proxy"),
        ] {
            let said = said(line);
            assert!(said.contains(why), "{line:?}: {said}");
            assert!(!said.contains("similar"), "{said}");
        }
    }

    #[test]
    fn nothing_is_offered_instead() {
        for option in ["--includes", "--insecur", "--frob"] {
            let said = said(&[option, "h/a"]);
            assert!(said.contains(option), "{said}");
            assert!(
                !said.contains("similar") && !said.contains("--insecure"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_there_is_has_no_word() {
        let command = Args::command();
        let longs = command.get_arguments().filter_map(clap::Arg::get_long);
        let shorts = command.get_arguments().filter_map(clap::Arg::get_short);
        let names = longs.map(|name| format!("--{name}"));
        for name in names.chain(shorts.map(|name| format!("-{name}"))) {
            assert_eq!(word(&name), None, "{name}");
        }
        let all: Vec<_> = CURLS.iter().flat_map(|(_, options)| *options).collect();
        assert_eq!(
            all.iter().collect::<HashSet<_>>().len(),
            all.len(),
            "named once"
        );
    }
}
