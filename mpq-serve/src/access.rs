//! The access log: a line for each response, and for each handshake that fails, in a form that the tools of other
//! servers read.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use http::header::{HOST, HeaderName, RANGE, REFERER, USER_AGENT};
use http::{Request, StatusCode, Version};
use mpq_core::printable;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::error::Error;
use crate::lines::{Destination, Lines};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// The Common Log Format of NCSA's and of Apache's servers.
    Common,
    /// That, and then the `Referer` and the `User-Agent`, as Apache and nginx have it.
    #[default]
    Combined,
    /// An object with all that is known.
    Json,
}

/// One response that is over.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    remote: SocketAddr,
    /// What was asked for, if that could be read.
    asked: Option<Asked>,
    protocol: String,
    began: SystemTime,
    pub(crate) status: StatusCode,
    /// Bytes of the body.
    pub(crate) bytes: u64,
    /// Why it was cut, if it was.
    pub(crate) cut: Option<String>,
}

/// What a request asks for, and how.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    /// Path and query, as they came.
    target: String,
    host: Option<String>,
    referer: Option<String>,
    user_agent: Option<String>,
    range: Option<String>,
}

impl Entry {
    /// Of a request that came just now.
    pub(crate) fn new<B>(remote: SocketAddr, request: &Request<B>) -> Self {
        let field = |name: HeaderName| {
            let value = request.headers().get(name)?;
            Some(text(value.as_bytes()))
        };
        let uri = request.uri();
        let target = uri.path_and_query();
        let asked = Asked {
            method: request.method().to_string(),
            target: text(target.map_or("/", |target| target.as_str()).as_bytes()),
            host: match uri.authority() {
                Some(authority) => Some(text(authority.as_str().as_bytes())),
                None => field(HOST),
            },
            referer: field(REFERER),
            user_agent: field(USER_AGENT),
            range: field(RANGE),
        };
        Self {
            asked: Some(asked),
            ..Self::unread(remote, request.version(), StatusCode::OK)
        }
    }

    /// Of a request whose header was not read, and which has this answer.
    pub(crate) fn unread(remote: SocketAddr, version: Version, status: StatusCode) -> Self {
        Self {
            remote,
            asked: None,
            protocol: format!("{version:?}"),
            began: SystemTime::now(),
            status,
            bytes: 0,
            cut: None,
        }
    }

    /// The line of the server's own log.
    pub(crate) fn log(&self) {
        let cut = match &self.cut {
            Some(why) => format!(" cut off: {}", why.escape_debug()),
            None => String::new(),
        };
        let request = match &self.asked {
            Some(Asked { method, target, .. }) => {
                let path = target.split('?').next().unwrap_or_default();
                format!("{method} {}", escape(path))
            }
            None => "-".to_owned(),
        };
        tracing::info!(
            "{} {request} {} {} bytes{cut}",
            self.remote,
            self.status.as_u16(),
            self.bytes
        );
    }

    fn line(&self, format: Format, took: Duration) -> String {
        let asked = self.asked.as_ref();
        let optional =
            |field: fn(&Asked) -> &Option<String>| asked.and_then(|a| field(a).as_deref());
        let (referer, user_agent) = (optional(|a| &a.referer), optional(|a| &a.user_agent));
        if format == Format::Json {
            let line = JsonLine {
                time: rfc3339(self.began),
                remote: self.remote,
                method: asked.map(|asked| asked.method.as_str()),
                target: asked.map(|asked| asked.target.as_str()),
                protocol: &self.protocol,
                host: optional(|a| &a.host),
                status: self.status.as_u16(),
                bytes: self.bytes,
                duration: took.as_secs_f64(),
                range: optional(|a| &a.range),
                referer,
                user_agent,
                cut: self.cut.as_deref(),
            };
            return json(&line);
        }
        let request = asked.map(|Asked { method, target, .. }| {
            format!("{method} {} {}", escape(target), self.protocol)
        });
        let common = format!(
            "{} \"{}\" {} {}",
            beginning(self.remote, self.began),
            request.as_deref().unwrap_or("-"),
            self.status.as_u16(),
            self.bytes
        );
        let quoted = |field: Option<&str>| escape(field.unwrap_or("-"));
        match format {
            Format::Combined => format!(
                "{common} \"{}\" \"{}\"\n",
                quoted(referer),
                quoted(user_agent)
            ),
            _ => common + "\n",
        }
    }
}

/// A handshake that has begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handshake {
    remote: SocketAddr,
    began: SystemTime,
    protocol: Secured,
}

/// What a handshake is one of.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Secured {
    Quic,
    /// Over TCP.
    Tls,
}

impl Handshake {
    /// One that begins just now.
    pub(crate) fn new(remote: SocketAddr, protocol: Secured) -> Self {
        Self {
            remote,
            began: SystemTime::now(),
            protocol,
        }
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// That it has failed: as where other servers had no request, and no answer. Why is a field more.
    fn line(&self, why: &str, format: Format, took: Duration) -> String {
        let why = text(why.as_bytes());
        let beginning = beginning(self.remote, self.began);
        let why = match format {
            Format::Json => {
                return json(&JsonHandshake {
                    time: rfc3339(self.began),
                    remote: self.remote,
                    protocol: self.protocol,
                    duration: took.as_secs_f64(),
                    handshake_failed: &why,
                });
            }
            Format::Common => format!("\"{}\"", escape(&why)),
            Format::Combined => format!("\"-\" \"-\" \"{}\"", escape(&why)),
        };
        format!("{beginning} \"-\" 000 0 {why}\n")
    }
}

/// Who it was, and when, as other servers write it.
fn beginning(remote: SocketAddr, began: SystemTime) -> String {
    let time =
        format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
    let began = OffsetDateTime::from(began).format(time);
    let remote = remote.ip().to_canonical();
    format!("{remote} - - [{}]", began.unwrap_or_default())
}

/// With as many digits whatever they are, so that lines have one form and sort as text.
fn rfc3339(time: SystemTime) -> String {
    let form =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let time = OffsetDateTime::from(time).format(form);
    time.unwrap_or_default()
}

fn json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("its keys are strings") + "\n"
}

/// What a peer sent, without what could speak to a terminal.
fn text(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes))
}

/// What is not of ASCII, a quotation mark or a backslash is written as in a string of C, so that nobody can end a
/// field.
fn escape(text: &str) -> String {
    text.as_bytes().escape_ascii().to_string()
}

#[derive(Serialize)]
struct JsonLine<'a> {
    /// When the request came (RFC 3339).
    time: String,
    remote: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    protocol: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    status: u16,
    bytes: u64,
    /// Seconds.
    duration: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonHandshake<'a> {
    /// When it began (RFC 3339).
    time: String,
    remote: SocketAddr,
    protocol: Secured,
    /// Seconds.
    duration: f64,
    /// Why.
    handshake_failed: &'a str,
}

/// Where the lines go, if they go anywhere but into the log.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog(Option<(Lines, Format)>);

impl AccessLog {
    /// `-` is the standard output stream.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn start(file: Option<&std::path::Path>, format: Format) -> Result<Self, Error> {
        let Some(file) = file else {
            return Ok(Self(None));
        };
        let destination = match file.as_os_str() == "-" {
            true => Destination::stdout(),
            false => Destination::File(file.to_owned()),
        };
        let tell = |lost| tracing::warn!("{lost} lines of the access log are lost");
        Ok(Self(Some((Lines::start(destination, tell)?, format))))
    }

    /// A response is over.
    pub(crate) fn log(&self, entry: &Entry) {
        let Some((lines, format)) = &self.0 else {
            return entry.log();
        };
        let took = entry.began.elapsed().unwrap_or_default();
        let _ = lines.clone().write(entry.line(*format, took).as_bytes());
    }

    /// A handshake has failed, for this reason. Without a file or stream of its own, this log does not have it: the
    /// other one says more.
    pub(crate) fn failed(&self, handshake: &Handshake, why: &str) {
        if let Some((lines, format)) = &self.0 {
            let took = handshake.began.elapsed().unwrap_or_default();
            let line = handshake.line(why, *format, took);
            let _ = lines.clone().write(line.as_bytes());
        }
    }

    /// Waits until all is written, but not for a reader that is stuck.
    pub(crate) fn flush(&self) {
        if let Some((lines, _)) = &self.0 {
            lines.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let request = Request::get("https://example.org/a%20b?q").version(http::Version::HTTP_3);
        let mut request = request.header(RANGE, "bytes=0-9").body(()).unwrap();
        let agent = http::HeaderValue::from_bytes(b"curl/8 \"x\"\x80").unwrap();
        request.headers_mut().insert(USER_AGENT, agent);
        let mut entry = Entry::new("[::ffff:192.0.2.1]:5".parse().unwrap(), &request);
        entry.began = SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_500);
        (entry.status, entry.bytes) = (StatusCode::PARTIAL_CONTENT, 10);
        entry
    }

    #[test]
    fn lines_are_those_of_other_servers() {
        let took = Duration::from_millis(1500);
        let common = "192.0.2.1 - - [06/Nov/1994:08:49:37 +0000] \"GET /a%20b?q HTTP/3.0\" 206 10";
        assert_eq!(entry().line(Format::Common, took), format!("{common}\n"));
        assert_eq!(
            entry().line(Format::Combined, took),
            format!("{common} \"-\" \"curl/8 \\\"x\\\"\\xef\\xbf\\xbd\"\n")
        );
    }

    #[test]
    fn json_has_all_that_is_known() {
        let mut entry = entry();
        entry.cut = Some("reset".to_owned());
        let line = entry.line(Format::Json, Duration::from_millis(1500));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "1994-11-06T08:49:37.500000Z",
            "remote": "[::ffff:192.0.2.1]:5",
            "method": "GET",
            "target": "/a%20b?q",
            "protocol": "HTTP/3.0",
            "host": "example.org",
            "status": 206,
            "bytes": 10,
            "duration": 1.5,
            "range": "bytes=0-9",
            "user_agent": "curl/8 \"x\"\u{fffd}",
            "cut": "reset",
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_request_that_was_not_read_has_its_answer() {
        let mut entry = Entry::unread(
            "192.0.2.1:5".parse().unwrap(),
            Version::HTTP_3,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        );
        entry.began = SystemTime::UNIX_EPOCH;
        let took = Duration::ZERO;
        let common = "192.0.2.1 - - [01/Jan/1970:00:00:00 +0000] \"-\" 431 0";
        assert_eq!(entry.line(Format::Common, took), format!("{common}\n"));
        assert_eq!(
            entry.line(Format::Combined, took),
            format!("{common} \"-\" \"-\"\n")
        );
        let line: serde_json::Value =
            serde_json::from_str(&entry.line(Format::Json, took)).unwrap();
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000000Z",
            "remote": "192.0.2.1:5",
            "protocol": "HTTP/3.0",
            "status": 431,
            "bytes": 0,
            "duration": 0.0,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_handshake_that_fails_has_no_answer_and_its_reason() {
        let handshake = Handshake {
            remote: "192.0.2.1:5".parse().unwrap(),
            began: SystemTime::UNIX_EPOCH,
            protocol: Secured::Quic,
        };
        let line = |format| handshake.line("bad \"x\"\x1b", format, Duration::from_millis(500));
        let common = "192.0.2.1 - - [01/Jan/1970:00:00:00 +0000] \"-\" 000 0";
        let why = "\"bad \\\"x\\\"\\xef\\xbf\\xbd\"";
        assert_eq!(line(Format::Common), format!("{common} {why}\n"));
        assert_eq!(
            line(Format::Combined),
            format!("{common} \"-\" \"-\" {why}\n")
        );
        let line: serde_json::Value = serde_json::from_str(&line(Format::Json)).unwrap();
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000000Z",
            "remote": "192.0.2.1:5",
            "protocol": "QUIC",
            "duration": 0.5,
            "handshake_failed": "bad \"x\"\u{fffd}",
        });
        assert_eq!(line, expected);
    }
}
