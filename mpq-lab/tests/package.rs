//! What packages of the tools have: man pages, completions, and a package for Debian, tried in a root with little else.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use common::privileged;
use mpq_lab::package::{completions, debian, manual};
use mpq_lab::system::host::{built, program, run};
use mpq_lab::system::setup;
use mpq_serve::site::random::Random;

mod common;

/// The tools and all of their commands that people use, with their whole names, such as mpq-serve-move.
fn commands() -> Vec<(String, clap::Command)> {
    let mut all = Vec::new();
    for mut tool in [
        mpq_get::cli::args::Args::command(),
        mpq_serve::args::Args::command(),
    ] {
        tool.build();
        let shown = tool.get_subcommands().filter(|of| !of.is_hide_set());
        for command in shown.filter(|of| of.get_name() != "help") {
            let name = format!("{}-{}", tool.get_name(), command.get_name());
            all.push((name, command.clone()));
        }
        all.push((tool.get_name().to_owned(), tool));
    }
    all
}

/// The long names of its options.
fn options(command: &clap::Command) -> Vec<&str> {
    let shown = command.get_arguments().filter(|of| !of.is_hide_set());
    let options: Vec<_> = shown.filter_map(|option| option.get_long()).collect();
    assert!(!options.is_empty());
    options
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_command_has_a_man_page_that_names_its_options() {
    let folder = tempfile::tempdir().unwrap();
    let files: BTreeSet<_> = manual(folder.path()).unwrap().into_iter().collect();
    let page = |name: &str| folder.path().join(format!("{name}.1"));
    let expected = commands().into_iter().map(|(name, _)| page(&name));
    assert_eq!(files, expected.collect());
    for (name, command) in commands() {
        let text = fs::read_to_string(page(&name)).unwrap();
        let text = text.replace("\\-", "-");
        for option in options(&command) {
            assert!(text.contains(&format!("--{option}")), "{name}: {option}");
        }
    }
    let serve = fs::read_to_string(page("mpq-serve")).unwrap();
    assert!(!serve.contains("receive"), "it is hidden");
}

#[test]
fn man_pages_have_no_faults() {
    let folder = tempfile::tempdir().unwrap();
    let files = manual(folder.path()).unwrap();
    let checks: [&[&str]; 2] = [
        &["man", "--warnings=all", "-E", "UTF-8", "-l"],
        &["mandoc", "-T", "lint", "-W", "error"],
    ];
    for check in checks {
        if program(check[0]).is_none() {
            eprintln!("SKIPPED: there is no {} here", check[0]);
            continue;
        }
        for file in &files {
            let mut command = Command::new(check[0]);
            command.args(&check[1..]).arg(file).env("MANWIDTH", "80");
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(said(&output), "", "{command:?}");
        }
    }
}

#[test]
fn every_shell_reads_completions_that_name_the_options() {
    let folder = tempfile::tempdir().unwrap();
    let files = completions(folder.path()).unwrap();
    for tool in ["mpq-get", "mpq-serve"] {
        for (shell, name) in [
            ("bash", format!("{tool}.bash")),
            ("zsh", format!("_{tool}")),
            ("fish", format!("{tool}.fish")),
        ] {
            let file = folder.path().join(name);
            assert!(files.contains(&file), "{}", file.display());
            let text = fs::read_to_string(&file).unwrap();
            for (name, command) in commands() {
                for option in options(&command) {
                    let named = text.contains(option);
                    assert!(
                        named || !name.starts_with(tool),
                        "{shell}, {name}: {option}"
                    );
                }
            }
            assert!(!text.contains("receive"), "{shell}: it is hidden");
            if program(shell).is_none() {
                eprintln!("SKIPPED: there is no {shell} here");
                continue;
            }
            let output = Command::new(shell).arg("-n").arg(&file).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(said(&output), "");
        }
    }
}

/// What bash offers for the last of these words.
fn offered(folder: &Path, words: &[&str]) -> BTreeSet<String> {
    let [tool, .., last] = words else {
        panic!("a tool and a word")
    };
    let script = format!(
        "source {}/{tool}.bash; function=$(complete -p {tool}); function=${{function#*-F }}; \
         COMP_WORDS=({}); COMP_CWORD={}; ${{function%% *}} {tool} '{last}' '{}'; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        folder.display(),
        words.join(" "),
        words.len() - 1,
        words[words.len() - 2],
    );
    let offered = run("bash", ["-c", &script]).unwrap();
    let offered = offered.lines().filter(|word| !word.is_empty());
    offered.map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    if program("bash").is_none() {
        eprintln!("SKIPPED: there is no bash here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    completions(folder.path()).unwrap();
    let offered = |words: &[&str]| offered(folder.path(), words);
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    assert_eq!(
        offered(&["mpq-get", "--speed"]),
        set(&["--speed-limit", "--speed-time"])
    );
    assert_eq!(
        offered(&["mpq-serve", "move"]),
        set(&["move", "move-container"])
    );
    assert_eq!(
        offered(&["mpq-serve", "move", "--dry"]),
        set(&["--dry-run"])
    );
}

/// A root with a package database, and in it what a package needs: what its `Depends` names, a shell and `rm`.
struct Root(tempfile::TempDir);

impl Root {
    fn of(package: &Path) -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        for folder in ["var/lib/dpkg/info", "var/log", "tmp", "run", "proc"] {
            fs::create_dir_all(root.path(folder)).unwrap();
        }
        let package = package.as_os_str();
        let fields = ["--field".as_ref(), package, "Depends".as_ref()];
        let depends = run("dpkg-deb", fields).unwrap();
        let names = depends
            .split(',')
            .filter_map(|of| of.split_whitespace().next());
        let mut status = String::new();
        for name in names {
            status += run("dpkg-query", ["--status", name]).unwrap().trim();
            status += "\n\n";
            let files = run("dpkg-query", ["--listfiles", name]).unwrap();
            for file in files.lines().map(Path::new).filter(|file| file.is_file()) {
                root.copy(file);
            }
        }
        fs::write(root.path("var/lib/dpkg/status"), status).unwrap();
        for program in ["sh", "rm"].map(|name| program(name).unwrap()) {
            let libraries = run("ldd", [&program]).unwrap();
            let words = libraries.split_whitespace().map(Path::new);
            for library in words.filter(|word| word.is_absolute()) {
                root.copy(library);
            }
            root.copy(&program);
            root.copy(&Path::new("/bin").join(program.file_name().unwrap()));
        }
        root
    }

    fn path(&self, of: impl AsRef<Path>) -> PathBuf {
        let of = of.as_ref();
        self.0.path().join(of.strip_prefix("/").unwrap_or(of))
    }

    /// Links are followed: what they lead to need not be there.
    fn copy(&self, file: &Path) {
        let to = self.path(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }

    fn dpkg(&self, arguments: &[&str]) {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg("--root").arg(self.path("/")).args(arguments);
        // Its database has no files lists of the others, and it says so.
        let output = dpkg.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// A command there, with processes of its own that end with it. It has the network of the host.
    fn command(&self, words: &[&str]) -> Command {
        let options = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut command = Command::new("unshare");
        command.args(options).arg("--root").arg(self.path("/"));
        command.args(words).env_clear().env("PATH", "/usr/bin:/bin");
        command
    }

    /// Every file and folder, apart from dpkg's, and from what a start of the system empties.
    fn contents(&self) -> BTreeSet<String> {
        let root = self.path("/");
        let mut find = vec![root.as_os_str()];
        for of_others in ["*/var/lib/dpkg/*", "*/run/*"] {
            find.extend(["-not", "-path", of_others].map(OsStr::new));
        }
        let found = run("find", find);
        found.unwrap().lines().map(str::to_owned).collect()
    }
}

/// Has one of these programs serve to the other.
fn download(root: &Root) {
    let serve = [
        "mpq-serve",
        "--random=1M",
        "--seed=7",
        "--listen=127.0.0.1:0",
    ];
    let mut server = root.command(&serve);
    let mut server = server.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
    let url = log.find_map(|line| {
        let line = line.unwrap();
        Some(line.split_once("serving ")?.1.to_owned())
    });
    let url = format!("{}random", url.unwrap());
    let get = root
        .command(&["mpq-get", "-k", "-o", "/tmp/body", &url])
        .output();
    server.kill().unwrap();
    server.wait().unwrap();
    let get = get.unwrap();
    assert!(get.status.success(), "{get:?}");
    let body = fs::read(root.path("tmp/body")).unwrap();
    let mut expected = vec![0; 1_000_000];
    Random::new(1_000_000, 7).fill(0, &mut expected);
    assert!(body == expected, "{} bytes", body.len());
    fs::remove_file(root.path("tmp/body")).unwrap();
}

#[tokio::test]
async fn a_package_for_debian_works_where_there_is_only_what_it_depends_on() {
    let Some(_alone) = privileged().await else {
        return;
    };
    setup::install(&[("dpkg-shlibdeps", "dpkg-dev")]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let programs = built("mpq-get").unwrap();
    let package = debian(folder.path(), programs.parent()).unwrap();
    let root = Root::of(&package);
    let before = root.contents();
    root.dpkg(&["--install", &package.to_string_lossy()]);

    for program in ["mpq-get", "mpq-serve"] {
        let version = root.command(&[program, "--version"]).output().unwrap();
        let version = String::from_utf8(version.stdout).unwrap();
        assert!(version.starts_with(program), "{version}");
    }
    download(&root);
    // As it comes, the service serves nothing.
    let serve = ["mpq-serve", "--config", "/etc/mpq-serve.toml"];
    let nothing = root.command(&serve).output().unwrap();
    assert!(said(&nothing).contains("nothing to serve"), "{nothing:?}");

    for file in [
        "usr/share/man/man1/mpq-serve-move.1.gz",
        "usr/share/bash-completion/completions/mpq-get",
        "usr/share/zsh/vendor-completions/_mpq-get",
        "usr/share/fish/vendor_completions.d/mpq-serve.fish",
        "usr/lib/systemd/system/mpq-serve.socket",
        "usr/share/doc/mpq/copyright",
    ] {
        assert!(root.path(file).is_file(), "{file}");
    }
    let unit = "usr/lib/systemd/system/mpq-serve.service";
    let unit = fs::read_to_string(root.path(unit)).unwrap();
    let program = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let program = program.unwrap().split(' ').next().unwrap();
    assert!(root.path(program).is_file(), "{program}");

    for folder in ["var/lib/mpq-serve", "var/log/mpq-serve"] {
        fs::create_dir_all(root.path(folder)).unwrap();
        fs::write(root.path(folder).join("kept"), "").unwrap();
    }
    root.dpkg(&["--remove", "mpq"]);
    assert!(root.path("etc/mpq-serve.toml").is_file());
    assert!(root.path("var/lib/mpq-serve/kept").is_file());
    root.dpkg(&["--purge", "mpq"]);
    let left: Vec<_> = root.contents().difference(&before).cloned().collect();
    assert_eq!(left, [""; 0]);
}
