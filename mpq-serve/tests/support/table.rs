//! The table of docs/http.md: what is answered to which method, conditions and range.

/// What the file of the table holds.
pub(crate) const CONTENT: &str = "0123456789";
/// When it was changed: Sun, 06 Nov 1994 08:49:37 GMT, as unix time in seconds.
pub(crate) const MODIFIED: u64 = 784_111_777;

/// One of its rows.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) number: String,
    pub(crate) method: String,
    pub(crate) fields: Vec<(String, String)>,
    /// The status, and the range of 206, of mpq-serve and of nginx.
    pub(crate) ours: String,
    pub(crate) nginx: String,
    /// What explains the difference.
    pub(crate) why: String,
}

/// All rows, for a file of this tag.
pub(crate) fn cases(etag: &str) -> Vec<Case> {
    let table = include_str!("../../../docs/http.md");
    let rows = table.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, number, method, fields, ours, nginx, why, _] = cells[..] else {
            return None;
        };
        number.parse::<u32>().ok()?;
        let fields = fields.split('`').skip(1).step_by(2).map(|field| {
            let (name, value) = field.split_once(": ").expect("a name and a value");
            (name.to_owned(), value.replace("{etag}", etag))
        });
        Some(Case {
            number: number.to_owned(),
            method: method.to_owned(),
            fields: fields.collect(),
            ours: ours.to_owned(),
            nginx: nginx.to_owned(),
            why: why.to_owned(),
        })
    });
    let cases: Vec<_> = rows.collect();
    assert!(cases.len() >= 120, "{} rows only", cases.len());
    cases
}

/// An answer as the table has it.
pub(crate) fn told(status: u16, content_range: Option<&str>) -> String {
    match (status, content_range) {
        (206, None) => "206 parts".to_owned(),
        (206, Some(range)) => {
            let range = range.strip_prefix("bytes ").unwrap_or(range);
            let (range, len) = range.split_once('/').expect("the length after the range");
            assert_eq!(len, CONTENT.len().to_string());
            format!("206 {range}")
        }
        (status, _) => status.to_string(),
    }
}
