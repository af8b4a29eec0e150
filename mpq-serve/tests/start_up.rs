//! What the program says at its start, and with which certificate.

mod support;

use quinn::rustls::pki_types::CertificateDer;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use support::{Running, connect, start};

fn refused(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mpq-serve"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said)
}

async fn shown(server: SocketAddr) -> Vec<CertificateDer<'static>> {
    let connection = connect(server).await.unwrap();
    let chain = connection.peer_identity().unwrap();
    *chain.downcast().unwrap()
}

#[test]
fn it_says_where_it_is_and_how_to_download() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a file.iso"), "x").unwrap();
    let (server, address) = start(&["--root", folder.path().to_str().unwrap()]);
    let mut lines = server.log.iter();
    let mut after = |what: &str| {
        let line = lines.find_map(|line| Some(line.split_once(what)?.1.to_owned()));
        line.unwrap_or_else(|| panic!("it does not say {what}"))
    };
    let fingerprint = after("certificate sha256 ");
    assert_eq!(after("serving "), format!("https://{address}/"));
    let command = format!("mpq-get --pin sha256:{fingerprint} -O https://{address}/a%20file.iso");
    assert_eq!(after("download with: "), command);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let (code, said) = refused(&[]);
    assert!(code == 2 && said.contains("nothing to serve"), "{said}");
    let (code, said) = refused(&["/missing/directory"]);
    assert!(code == 1 && said.contains("/missing/directory"), "{said}");
}

#[tokio::test]
async fn a_certificate_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("kept");
    let options = ["--save-cert", dir.to_str().unwrap()];
    let (server, address) = start(&options);
    let first = shown(address).await;
    drop(server);
    let (_server, address) = start(&options);
    assert_eq!(shown(address).await, first);
}

/// Has the program find no `openat2`, as systemd does with `RestrictSUIDSGID=`.
fn without_openat2(command: &mut Command) {
    use nix::libc;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let compare = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let install = move || {
        let mut filter = [
            instruction(load, 0, 0, 0),
            instruction(compare, 0, 1, libc::SYS_openat2 as u32),
            instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
            instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        nix::sys::prctl::set_no_new_privs()?;
        // SAFETY: the kernel copies the filter, which lives for as long as the call.
        #[expect(unsafe_code, reason = "no library that is used here installs filters")]
        let set = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        nix::errno::Errno::result(set).map(drop).map_err(Into::into)
    };
    // SAFETY: it allocates nothing, and makes two system calls.
    #[expect(unsafe_code, reason = "it is run between fork and exec")]
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, install);
    }
}

#[test]
fn a_service_that_could_open_no_file_does_not_start_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-serve"));
    without_openat2(&mut command);
    command.args(["--listen", "127.0.0.1:0"]).arg(folder.path());
    let program = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut program = Running(program.unwrap());
    let mut said = BufReader::new(program.0.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("RestrictSUIDSGID="), "{line}");
    assert_eq!(program.0.wait().unwrap().code(), Some(1));
}
