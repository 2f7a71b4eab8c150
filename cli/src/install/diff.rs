//! A change of a text file in the unified format. Ours change one stretch of a file, so that what is not common at the beginning or the
//! end is the change.

/// Lines around the change.
const CONTEXT: usize = 3;

/// The lines that differ, with some around them; empty if none do.
pub(crate) fn diff(name: &str, old: Option<&str>, new: Option<&str>) -> String {
    let (before, after) = (lines(old), lines(new));
    let head = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let tail = before[head..].iter().rev().zip(after[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (gone, come) = (&before[head..before.len() - tail], &after[head..after.len() - tail]);
    if gone.is_empty() && come.is_empty() {
        return String::new();
    }
    let from = head.saturating_sub(CONTEXT);
    let rest = &after[after.len() - tail..][..tail.min(CONTEXT)];
    let lead = &after[from..head];
    let source = |text: Option<&str>| if text.is_some() { name.to_owned() } else { "/dev/null".to_owned() };
    let count = |middle: usize| lead.len() + middle + rest.len();
    // An empty side is counted from the line before it (POSIX diff).
    let start = |count: usize| if count == 0 { from } else { from + 1 };
    let (removed, added) = (count(gone.len()), count(come.len()));
    let mut text = format!("--- {}\n+++ {}\n", source(old), source(new));
    text.push_str(&format!("@@ -{},{removed} +{},{added} @@\n", start(removed), start(added)));
    for (mark, lines) in [(' ', lead), ('-', gone), ('+', come), (' ', rest)] {
        for line in lines {
            text.push_str(&format!("{mark}{line}\n"));
        }
    }
    text
}

fn lines(text: Option<&str>) -> Vec<&str> {
    text.unwrap_or_default().lines().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown_with_three_lines_around_it() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n";
        let new = "1\n2\n3\n4\nx\ny\n6\n7\n8\n";
        let wanted = "--- f\n+++ f\n@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-5\n+x\n+y\n 6\n 7\n 8\n";
        assert_eq!(diff("f", Some(old), Some(new)), wanted);
        assert_eq!(diff("f", Some(old), Some(old)), "");
        assert_eq!(diff("f", None, Some("a\n")), "--- /dev/null\n+++ f\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(diff("f", Some("a\n"), None), "--- f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n");
        // The same line twice is not counted from both ends.
        assert_eq!(diff("f", Some("a\n"), Some("a\na\n")), "--- f\n+++ f\n@@ -1,1 +1,2 @@\n a\n+a\n");
    }
}
