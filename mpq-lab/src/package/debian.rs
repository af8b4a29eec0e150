//! A package for Debian, by `dpkg-deb`: without root, and without a network.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{completions, manual};
use crate::system::host::{cargo, program, run, show};

const NAME: &str = "mpq";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROGRAMS: [&str; 2] = ["mpq-get", "mpq-serve"];
/// Where the unit has its program if an administrator installs it, and where a package has it.
const EXEC_START: [&str; 2] = ["/usr/local/bin/mpq-serve", "/usr/bin/mpq-serve"];

const CONFIG: &str = include_str!("../../../mpq-serve/systemd/mpq-serve.toml");
const SERVICE: &str = include_str!("../../../mpq-serve/systemd/mpq-serve.service");
const SOCKET: &str = include_str!("../../../mpq-serve/systemd/mpq-serve.socket");
const MOVED: &str = include_str!("../../../mpq-serve/systemd/mpq-serve-moved.conf");
const CHANGELOG: &str = include_str!("../../../CHANGELOG.md");
const LICENCES: [&str; 2] = [
    include_str!("../../../LICENSE-MIT"),
    include_str!("../../../LICENSE-APACHE"),
];

/// Nothing is started: what would be served is not known. A server that runs is not replaced either, since its
/// connections would end.
const POSTINST: &str = "\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
";
const PRERM: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
    systemctl --quiet disable --now mpq-serve.socket mpq-serve.service
fi
";
const POSTRM: &str = "\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
if [ \"$1\" = purge ]; then
    rm -rf /var/lib/mpq-serve /var/log/mpq-serve
fi
";

/// Makes the package in a folder and returns its file. Its programs are those of the folder `programs`, or are built.
///
/// # Errors
/// If a program is missing or cannot be built, or one of Debian's that makes the package is.
pub fn debian(folder: &Path, programs: Option<&Path>) -> Result<PathBuf> {
    // In this order the first one that is missing is named before minutes are spent.
    for (tool, package) in [
        ("dpkg-deb", "dpkg"),
        ("dpkg-shlibdeps", "dpkg-dev"),
        ("strip", "binutils"),
        ("gzip", "gzip"),
    ] {
        program(tool).with_context(|| format!("there is no {tool} here; install {package}"))?;
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist");
    let programs = match programs {
        Some(folder) => folder,
        None => {
            build()?;
            &built
        }
    };
    let stage = tempfile::tempdir()?;
    let root = stage.path().join("root");
    lay_out(&root, programs)?;
    let depends = dependencies(stage.path(), &root)?;
    describe(&root, &depends)?;
    // Whatever the umask is.
    run(
        "chmod",
        ["-R".as_ref(), "u=rwX,go=rX".as_ref(), root.as_os_str()],
    )?;

    let architecture = run("dpkg", ["--print-architecture"])?;
    let file = folder.join(format!("{NAME}_{VERSION}_{}.deb", architecture.trim()));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "--build"])
        .args([&root, &file])
        .stdout(std::process::Stdio::null());
    // So that the same revision gives the same package.
    if std::env::var_os("SOURCE_DATE_EPOCH").is_none() {
        let manifest = env!("CARGO_MANIFEST_DIR");
        if let Ok(time) = run("git", ["-C", manifest, "log", "-1", "--format=%ct"]) {
            pack.env("SOURCE_DATE_EPOCH", time.trim());
        }
    }
    show(&mut pack)?;
    Ok(file)
}

fn build() -> Result<()> {
    let mut build = cargo(&["build", "--locked", "--profile", "dist", "--bins"]);
    for program in PROGRAMS {
        build.args(["--package", program]);
    }
    show(&mut build)
}

/// All files of the package.
fn lay_out(root: &Path, programs: &Path) -> Result<()> {
    for name in PROGRAMS {
        let (from, to) = (programs.join(name), root.join("usr/bin").join(name));
        make_parent(&to)?;
        fs::copy(&from, &to).with_context(|| format!("there is no {}", from.display()))?;
        run("strip", [&to])?;
    }

    let pages = root.join("usr/share/man/man1");
    fs::create_dir_all(&pages)?;
    for page in manual(&pages)? {
        compress(&page)?;
    }
    let generated = tempfile::tempdir()?;
    for file in completions(generated.path())? {
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.context("a completion has a name")?;
        let place = match name.rsplit_once('.') {
            Some((tool, "bash")) => format!("bash-completion/completions/{tool}"),
            Some((_, "fish")) => format!("fish/vendor_completions.d/{name}"),
            _ => format!("zsh/vendor-completions/{name}"),
        };
        let text = fs::read_to_string(&file)?;
        write(&root.join("usr/share").join(place), &text)?;
    }

    let units = root.join("usr/lib/systemd/system");
    let [local, packaged] = EXEC_START;
    let service = SERVICE.replace(local, packaged);
    write(&units.join("mpq-serve.service"), &service)?;
    write(&units.join("mpq-serve.socket"), SOCKET)?;
    let moved = units.join("mpq-serve-moved.service.d/mpq-serve.conf");
    write(&moved, MOVED)?;
    write(&root.join("etc/mpq-serve.toml"), CONFIG)?;

    let documents = root.join("usr/share/doc").join(NAME);
    write(&documents.join("copyright"), &LICENCES.join("\n\n"))?;
    let changelog = documents.join("changelog");
    write(&changelog, CHANGELOG)?;
    compress(&changelog)
}

/// The packages whose libraries the programs use, as a field of the package has them.
fn dependencies(stage: &Path, root: &Path) -> Result<String> {
    // It wants to be where a source package is.
    write(&stage.join("debian/control"), "")?;
    let mut find = Command::new("dpkg-shlibdeps");
    find.arg("-O").current_dir(stage);
    for name in PROGRAMS {
        find.arg(root.join("usr/bin").join(name));
    }
    let output = find.output().context("cannot run dpkg-shlibdeps")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let found = said
        .lines()
        .find_map(|line| line.strip_prefix("shlibs:Depends="));
    let found = found.with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("dpkg-shlibdeps has found no dependencies: {}", error.trim())
    })?;
    Ok(found.to_owned())
}

/// What dpkg reads: the description, the files that an administrator may change, and what is run.
fn describe(root: &Path, depends: &str) -> Result<()> {
    let size = run("du", ["-sk".as_ref(), root.as_os_str()])?;
    let size = size.split_whitespace().next().unwrap_or("0");
    let architecture = run("dpkg", ["--print-architecture"])?;
    let architecture = architecture.trim();
    // As Debian's own tools have them.
    let set = |name, usual: &str| std::env::var(name).unwrap_or(usual.to_owned());
    let maintainer = set("DEBFULLNAME", "mpq");
    let address = set("DEBEMAIL", "root@localhost");
    let control = format!(
        "Package: {NAME}\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: {maintainer} <{address}>\n\
         Installed-Size: {size}\n\
         Depends: {depends}\n\
         Recommends: ca-certificates\n\
         Suggests: criu (>= 4.2)\n\
         Section: net\n\
         Priority: optional\n\
         Description: downloads over every network interface, and through server moves\n \
         mpq-get downloads over HTTP/3 and Multipath QUIC, through every network interface\n \
         at once. mpq-serve serves files, and moves to another address or host, with CRIU,\n \
         while its downloads go on.\n"
    );
    let folder = root.join("DEBIAN");
    write(&folder.join("control"), &control)?;
    write(&folder.join("conffiles"), "/etc/mpq-serve.toml\n")?;
    for (name, script) in [("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)] {
        let file = folder.join(name);
        write(&file, script)?;
        fs::set_permissions(&file, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    make_parent(file)?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn make_parent(file: &Path) -> Result<()> {
    let folder = file.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Replaces a file by what gzip makes of it: the same whenever that is.
fn compress(file: &Path) -> Result<()> {
    run("gzip", ["-9n".as_ref(), file.as_os_str()])?;
    Ok(())
}
