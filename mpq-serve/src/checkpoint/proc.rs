//! How the kernel says what a process is: the fields of its files in `/proc`.

/// A field of `status` (proc_pid_status(5)), or of another file with a name and a colon in each line.
pub fn named<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found == name).then(|| value.trim())
    })
}

/// A field of `stat`, by its number in proc_pid_stat(5), from the third one on. The name, in parentheses, may hold
/// anything.
pub fn numbered(stat: &str, number: usize) -> Option<&str> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split_whitespace().nth(number.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let status = "Name:\tPid: 9\nNSpid:\t7\t1\nPid:\t 7\n";
        assert_eq!(named(status, "Pid"), Some("7"));
        assert_eq!(named(status, "NSpid"), Some("7\t1"));
        assert_eq!(named(status, "Name"), Some("Pid: 9"));
        assert_eq!(named(status, "PPid"), None);
    }

    #[test]
    fn a_name_with_parentheses_hides_nothing() {
        let fields: Vec<_> = (4..=30).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) S 1 2) S {}\n", fields.join(" "));
        assert_eq!(numbered(&stat, 3), Some("S"));
        assert_eq!(numbered(&stat, 22), Some("22"));
        assert_eq!(numbered(&stat, 2), None);
        assert_eq!(numbered("7 (a) S", 22), None);
        assert_eq!(numbered("7 (a)", 3), None);
    }
}
