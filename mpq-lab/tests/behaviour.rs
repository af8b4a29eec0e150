//! The table of docs/http.md, asked of nginx: what it says of nginx is so, and each difference is explained.

use std::fs::{self, File};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::privileged;
use mpq_lab::arms::tcp;
use table::{CONTENT, MODIFIED, cases, told};

mod common;
#[path = "../../mpq-serve/tests/support/table.rs"]
#[allow(dead_code, reason = "the number of a row is only shown")]
mod table;

/// For nginx to listen.
const LIMIT: Duration = Duration::from_secs(10);

/// An nginx that serves a folder, over plain HTTP on loopback.
struct Nginx {
    process: Child,
    port: u16,
}

impl Nginx {
    fn start(folder: &Path, root: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (folder, root) = (folder.display(), root.display());
        let config = format!(
            "daemon off; master_process off; pid {folder}/pid; user root;
             error_log {folder}/error.log;
             events {{}}
             http {{
               access_log off;
               client_body_temp_path {folder}; proxy_temp_path {folder};
               fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
               server {{ listen 127.0.0.1:{port}; root {root}; }}
             }}"
        );
        let file = format!("{folder}/nginx.conf");
        fs::write(&file, config).unwrap();
        let mut process = Command::new(tcp::nginx().unwrap())
            .args(["-e", &format!("{folder}/error.log"), "-c", &file])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let end = Instant::now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if process.try_wait().unwrap().is_some() || Instant::now() > end {
                let mut said = String::new();
                let mut stderr = process.stderr.take().unwrap();
                stderr.read_to_string(&mut said).unwrap();
                panic!("nginx: {said}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, port }
    }

    /// The status of an answer, and a field of it.
    fn ask(&self, method: &str, fields: &[(String, String)], name: &str) -> (u16, Option<String>) {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--include"]);
        match method {
            "HEAD" => curl.arg("--head"),
            method => curl.args(["--request", method]),
        };
        for (name, value) in fields {
            curl.args(["--header", &format!("{name}: {value}")]);
        }
        curl.arg(format!("http://127.0.0.1:{}/file", self.port));
        let output = curl.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let answer = String::from_utf8_lossy(&output.stdout);
        let mut head = answer.lines().take_while(|line| !line.is_empty());
        let status = head.next().unwrap().split(' ').nth(1).unwrap();
        let field = head.find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then(|| value.to_owned())
        });
        (status.parse().unwrap(), field)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn what_the_table_says_of_nginx_is_so_and_each_difference_is_explained() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), CONTENT).unwrap();
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(MODIFIED);
    let file = File::options().write(true).open(root.join("file"));
    file.unwrap().set_modified(modified).unwrap();
    let nginx = Nginx::start(folder.path(), &root);

    let (_, etag) = nginx.ask("GET", &[], "ETag");
    let mut wrong = Vec::new();
    for case in cases(&etag.unwrap()) {
        let (status, range) = nginx.ask(&case.method, &case.fields, "Content-Range");
        let answer = told(status, range.as_deref().filter(|_| status == 206));
        if answer != case.nginx {
            wrong.push(format!("{answer} to {case:?}"));
        }
        let differs = case.ours != case.nginx;
        assert_eq!(differs, !case.why.is_empty(), "{case:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
