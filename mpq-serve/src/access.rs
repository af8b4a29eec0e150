//! The access log: a line for each response, in a form that the tools of other servers read.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use http::header::{HOST, HeaderName, RANGE, REFERER, USER_AGENT};
use http::{Request, StatusCode};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
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
    method: String,
    /// Path and query, as they came.
    target: String,
    protocol: String,
    host: Option<String>,
    referer: Option<String>,
    user_agent: Option<String>,
    range: Option<String>,
    began: SystemTime,
    pub(crate) status: StatusCode,
    /// Bytes of the body.
    pub(crate) bytes: u64,
    /// Why it was cut, if it was.
    pub(crate) cut: Option<String>,
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
        Self {
            remote,
            method: request.method().to_string(),
            target: text(target.map_or("/", |target| target.as_str()).as_bytes()),
            protocol: format!("{:?}", request.version()),
            host: match uri.authority() {
                Some(authority) => Some(text(authority.as_str().as_bytes())),
                None => field(HOST),
            },
            referer: field(REFERER),
            user_agent: field(USER_AGENT),
            range: field(RANGE),
            began: SystemTime::now(),
            status: StatusCode::OK,
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
        let path = escape(self.target.split('?').next().unwrap_or_default());
        tracing::info!(
            "{} {} {path} {} {} bytes{cut}",
            self.remote,
            self.method,
            self.status.as_u16(),
            self.bytes
        );
    }

    fn line(&self, format: Format, took: Duration) -> String {
        let began = OffsetDateTime::from(self.began);
        if format == Format::Json {
            let line = JsonLine {
                time: began.format(&Rfc3339).unwrap_or_default(),
                remote: self.remote,
                method: &self.method,
                target: &self.target,
                protocol: &self.protocol,
                host: self.host.as_deref(),
                status: self.status.as_u16(),
                bytes: self.bytes,
                duration: took.as_secs_f64(),
                range: self.range.as_deref(),
                referer: self.referer.as_deref(),
                user_agent: self.user_agent.as_deref(),
                cut: self.cut.as_deref(),
            };
            return serde_json::to_string(&line).expect("its keys are strings") + "\n";
        }
        let time =
            format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
        let common = format!(
            "{} - - [{}] \"{} {} {}\" {} {}",
            self.remote.ip().to_canonical(),
            began.format(time).unwrap_or_default(),
            self.method,
            escape(&self.target),
            self.protocol,
            self.status.as_u16(),
            self.bytes
        );
        let quoted = |field: &Option<String>| escape(field.as_deref().unwrap_or("-"));
        match format {
            Format::Combined => format!(
                "{common} \"{}\" \"{}\"\n",
                quoted(&self.referer),
                quoted(&self.user_agent)
            ),
            _ => common + "\n",
        }
    }
}

/// What a peer sent, without what could speak to a terminal.
fn text(bytes: &[u8]) -> String {
    let safe = |c: char| match c.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    };
    String::from_utf8_lossy(bytes).chars().map(safe).collect()
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
    method: &'a str,
    target: &'a str,
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
            true => Destination::Stdout,
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
            "time": "1994-11-06T08:49:37.5Z",
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
}
