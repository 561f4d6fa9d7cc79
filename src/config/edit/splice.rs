//! Changes the list `nodes` in the text of a configuration, and no byte outside of it. Comments keep their places; a new
//! node goes on in the style of the last one: quotes, line ends, indentation, and a comma at the end or none.

use std::ops::Range;

use toml::de::DeTable;

/// The list as it stands in the text.
struct List {
    /// From the opening bracket to behind the closing one.
    span: Range<usize>,
    /// Each node: where it stands, quotes included, and what it says.
    items: Vec<(Range<usize>, String)>,
}

/// `None` where the text is no configuration with a list of strings called `nodes`.
fn find(text: &str) -> Option<List> {
    let parsed = DeTable::parse(text).ok()?;
    let value = parsed.get_ref().get("nodes")?;
    let items = value.get_ref().as_array()?.iter();
    let items: Option<Vec<_>> =
        items.map(|item| Some((item.span(), item.get_ref().as_str()?.to_owned()))).collect();
    Some(List { span: value.span(), items: items? })
}

/// The nodes that the text lists.
fn listed(text: &str) -> Option<Vec<String>> {
    Some(find(text)?.items.into_iter().map(|(_, node)| node).collect())
}

/// The text with these nodes at the end of the list.
pub(super) fn add(text: &str, nodes: &[&str]) -> Option<String> {
    let mut wanted = listed(text)?;
    let mut text = text.to_owned();
    for node in nodes {
        text = add_one(&text, node)?;
        wanted.push((*node).to_owned());
    }
    (listed(&text)? == wanted).then_some(text)
}

/// The text without these nodes; one that is not listed is not missed.
pub(super) fn remove(text: &str, nodes: &[&str]) -> Option<String> {
    let mut wanted = listed(text)?;
    wanted.retain(|node| !nodes.contains(&node.as_str()));
    let mut text = text.to_owned();
    loop {
        let list = find(&text)?;
        let Some(at) = list.items.iter().position(|(_, node)| nodes.contains(&node.as_str())) else { break };
        text = remove_one(&text, &list, at)?;
    }
    (listed(&text)? == wanted).then_some(text)
}

fn add_one(text: &str, node: &str) -> Option<String> {
    let list = find(text)?;
    let Some((last, _)) = list.items.last() else {
        let at = list.span.start + 1;
        return Some(format!("{}\"{node}\"{}", &text[..at], &text[at..]));
    };
    let quote = if text[last.clone()].starts_with('\'') { '\'' } else { '"' };
    let new = format!("{quote}{node}{quote}");
    let before = &text[..last.start];
    let indent = &before[before.trim_end_matches([' ', '\t']).len()..];
    let own_line = before[..before.len() - indent.len()].ends_with('\n');
    let comma = comma_after(text, last.end..list.span.end);
    if !own_line {
        // On the line of the one before it, or after the comma that begins its line.
        let gap = match list.items.len().checked_sub(2).and_then(|at| list.items.get(at)) {
            Some((earlier, _)) if !text[earlier.end..last.start].contains('#') => {
                text[earlier.end..last.start].to_owned()
            }
            Some(_) | None => ", ".to_owned(),
        };
        return Some(match comma {
            Some(comma) => {
                let after = gap.split_once(',').map_or(" ", |(_, after)| after);
                format!("{}{after}{new},{}", &text[..=comma], &text[comma + 1..])
            }
            None => format!("{}{gap}{new}{}", &text[..last.end], &text[last.end..]),
        });
    }
    // A comment that follows on the same line is about the last one, and stays with it.
    let end = comma.map_or(last.end, |comma| comma + 1);
    let line_end = end_of_line(text, end, list.span.end);
    let line_break = if before.trim_end_matches([' ', '\t']).ends_with("\r\n") { "\r\n" } else { "\n" };
    let (added, rest) = (&text[end..line_end], &text[line_end..]);
    Some(match comma {
        Some(_) => format!("{}{added}{line_break}{indent}{new},{rest}", &text[..end]),
        None => format!("{},{added}{line_break}{indent}{new}{rest}", &text[..end]),
    })
}

/// Where the line ends on which `from` stands, comment included; the closing bracket ends it as well.
fn end_of_line(text: &str, from: usize, list_end: usize) -> usize {
    let rest = &text[from..list_end - 1];
    let comment_or_blank = rest.trim_start_matches([' ', '\t']);
    if !comment_or_blank.starts_with(['#', '\r', '\n']) {
        return from;
    }
    let line = rest.find('\n').map_or(rest, |at| &rest[..at]);
    from + line.strip_suffix('\r').unwrap_or(line).len()
}

fn remove_one(text: &str, list: &List, at: usize) -> Option<String> {
    let (item, _) = list.items.get(at)?;
    let until = list.items.get(at + 1).map_or(list.span.end, |(next, _)| next.start);
    let before = at.checked_sub(1).and_then(|at| list.items.get(at)).map(|(earlier, _)| earlier.end);
    let after = comma_after(text, item.end..until);
    let comma = after.or_else(|| comma_after(text, before?..item.start));
    let blank = |range: Range<usize>| text[range].bytes().all(|byte| matches!(byte, b' ' | b'\t'));
    let (core, single) = match (comma, after) {
        (Some(comma), Some(_)) if blank(item.end..comma) => (item.start..comma + 1, None),
        (Some(comma), None) if blank(comma + 1..item.start) => (comma..item.end, None),
        (comma, _) => (item.clone(), comma),
    };
    let mut gone = vec![with_its_line(text, core, list.span.end)];
    gone.extend(single.map(|comma| comma..comma + 1));
    gone.sort_by_key(|range| range.start);
    let mut kept = text.to_owned();
    for range in gone.into_iter().rev() {
        kept.replace_range(range, "");
    }
    Some(kept)
}

/// What is to go with it: its whole line where nothing else stands on it, else the blanks that kept it apart.
fn with_its_line(text: &str, core: Range<usize>, list_end: usize) -> Range<usize> {
    let blanks = [' ', '\t'];
    let start = text[..core.start].trim_end_matches(blanks).len();
    let rest = &text[core.end..list_end];
    let end = core.end + rest.len() - rest.trim_start_matches(blanks).len();
    let begins_line = text[..start].ends_with('\n');
    let follows = &text[end..];
    let line_break = if follows.starts_with("\r\n") { 2 } else { usize::from(follows.starts_with('\n')) };
    match (begins_line, line_break) {
        (true, 1..) => start..end + line_break,
        (true, 0) => core.start..end,
        (false, 1..) => start..core.end,
        (false, 0) if text[core.start..].starts_with(',') || follows.starts_with('#') => core,
        (false, 0) if follows.starts_with(']') => start..core.end,
        (false, 0) => core.start..end,
    }
}

/// The first comma in this range that does not stand in a comment.
fn comma_after(text: &str, range: Range<usize>) -> Option<usize> {
    let mut in_comment = false;
    text.bytes().enumerate().take(range.end).skip(range.start).find_map(|(at, byte)| {
        match byte {
            b'#' => in_comment = true,
            b'\n' => in_comment = false,
            b',' if !in_comment => return Some(at),
            _ => {}
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_added(before: &str, after: &str) {
        assert_eq!(add(before, &["h:9"]).as_deref(), Some(after));
    }

    fn assert_removed(before: &str, node: &str, after: &str) {
        assert_eq!(remove(before, &[node]).as_deref(), Some(after));
    }

    #[test]
    fn a_new_node_goes_on_in_the_style_of_the_last_one() {
        assert_added("nodes = [\"h:1\"]", "nodes = [\"h:1\", \"h:9\"]");
        assert_added("nodes = ['h:1','h:2']", "nodes = ['h:1','h:2','h:9']");
        assert_added("nodes = [ \"h:1\", \"h:2\", ] # c", "nodes = [ \"h:1\", \"h:2\", \"h:9\", ] # c");
        assert_added("nodes = [\r\n\t\"h:1\",\r\n]\r\n", "nodes = [\r\n\t\"h:1\",\r\n\t\"h:9\",\r\n]\r\n");
        assert_added(
            "nodes = [\n  \"h:1\", # one\n  \"h:2\" # two, the last\n]\n",
            "nodes = [\n  \"h:1\", # one\n  \"h:2\", # two, the last\n  \"h:9\"\n]\n",
        );
        assert_added("nodes = [\n  \"h:1\"]", "nodes = [\n  \"h:1\",\n  \"h:9\"]");
        assert_added(
            "nodes = [\n    \"h:1\"\n  , \"h:2\"\n]",
            "nodes = [\n    \"h:1\"\n  , \"h:2\"\n  , \"h:9\"\n]",
        );
        assert_added("\u{feff}nodes = [\"h:1\"]\r\n", "\u{feff}nodes = [\"h:1\", \"h:9\"]\r\n");
        assert_added("nodes = []", "nodes = [\"h:9\"]");
    }

    #[test]
    fn a_node_goes_with_its_comma_and_its_line_and_without_any_comment() {
        assert_removed("nodes = [\"h:1\", \"h:2\"]", "h:1", "nodes = [\"h:2\"]");
        assert_removed("nodes = [ \"h:1\", \"h:2\" ]", "h:2", "nodes = [ \"h:1\" ]");
        assert_removed("nodes = [\"h:1\", \"h:2\",]", "h:2", "nodes = [\"h:1\",]");
        assert_removed(
            "nodes = [\r\n  \"h:1\",\r\n  \"h:2\", # two\r\n  \"h:3\"\r\n]",
            "h:2",
            "nodes = [\r\n  \"h:1\",\r\n  # two\r\n  \"h:3\"\r\n]",
        );
        assert_removed("nodes = [\n  \"h:1\", # one\n  \"h:2\"\n]", "h:2", "nodes = [\n  \"h:1\" # one\n]");
        assert_removed("nodes = [\n  \"h:1\",\n  \"h:2\",\n]\n", "h:1", "nodes = [\n  \"h:2\",\n]\n");
        assert_removed("nodes = [\n \"h:1\"\n , \"h:2\"\n]", "h:2", "nodes = [\n \"h:1\"\n]");
    }

    #[test]
    fn what_is_no_list_of_nodes_is_not_touched() {
        for text in ["", "nodes = 1", "nodes = [1]", "nodes = [", "x = [\"h:1\"]"] {
            assert_eq!(add(text, &["h:9"]), None, "{text}");
            assert_eq!(remove(text, &["h:1"]), None, "{text}");
        }
    }

    /// What may stand between two parts of a list.
    fn gap() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just(" ".to_owned()),
            Just("\t".to_owned()),
            Just("EOL".to_owned()),
            Just("EOL    ".to_owned()),
            Just(" # a, \"comment\" [of] mineEOL".to_owned()),
        ];
        prop::collection::vec(part, 0..3).prop_map(|parts| parts.concat())
    }

    fn around() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            Just("EOL# a commentEOL".to_owned()),
            Just("name = \"x\" # whyEOLEOL".to_owned()),
        ]
    }

    fn text() -> impl Strategy<Value = (String, String, String, usize)> {
        let items = prop::collection::vec((gap(), gap(), any::<bool>()), 1..5);
        let parts = (around(), items, gap(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        parts.prop_map(|(before, items, last, comma, windows, mark, final_break)| {
            let count = items.len();
            let mut list = String::from("[");
            for (number, (lead, trail, single)) in items.into_iter().enumerate() {
                let quote = if single { '\'' } else { '"' };
                list += &format!("{lead}{quote}h:{number}{quote}{trail}");
                if number + 1 < count || comma {
                    list.push(',');
                }
            }
            list += &format!("{last}]");
            let end = if windows { "\r\n" } else { "\n" };
            let mark = if mark { "\u{feff}" } else { "" };
            let after = format!(" # behindEOL[supervisor] # s{}", if final_break { "EOL" } else { "" });
            let own = |text: String| text.replace("EOL", end);
            (format!("{mark}{}nodes = ", own(before)), own(list), own(after), count)
        })
    }

    fn comments(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| Some(line[line.find('#')?..].trim_end())).collect()
    }

    proptest! {
        #[test]
        fn no_byte_outside_of_the_list_and_no_comment_changes(
            (before, list, after, count) in text(), chosen in any::<prop::sample::Index>(),
        ) {
            let whole = format!("{before}{list}{after}");
            let nodes = listed(&whole).expect("it is a configuration");
            prop_assert_eq!(nodes.len(), count);
            let gone = nodes[chosen.index(count)].clone();
            for changed in [add(&whole, &["h:8", "h:9"]), remove(&whole, &[&gone])] {
                let changed = changed.expect("it can be changed");
                prop_assert!(changed.starts_with(&before) && changed.ends_with(&after), "{:?}", changed);
                prop_assert_eq!(comments(&changed), comments(&whole));
                // A line break of the other kind would be one of ours.
                if after.contains("\r\n") {
                    prop_assert_eq!(changed.matches('\n').count(), changed.matches("\r\n").count());
                } else {
                    prop_assert!(!changed.contains('\r'));
                }
            }
            let back = remove(&add(&whole, &["h:9"]).unwrap(), &["h:9"]).unwrap();
            prop_assert_eq!(listed(&back), listed(&whole));
        }
    }
}
