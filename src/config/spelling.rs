//! Addresses as users of etcd bring them (a URL, a bare port, `name=URL`), and what they are called here.

use crate::view::NodeId;

/// The address that a text was probably meant to be; `None` where it is one, or where that cannot be known.
#[must_use]
pub fn meant(text: &str) -> Option<String> {
    if NodeId::parse(text).is_ok() {
        return None;
    }
    let text = text.trim();
    let text = text.split_once('=').map_or(text, |(_, address)| address);
    let address = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    let address = address.trim_end_matches('/');
    let whole = if !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("127.0.0.1:{address}")
    } else if let Some(port) = address.strip_prefix(':').or_else(|| address.strip_prefix("0.0.0.0:")) {
        format!("127.0.0.1:{port}")
    } else {
        address.to_owned()
    };
    NodeId::parse(&whole).is_ok().then_some(whole)
}

/// The advice that follows a text that is no address: the right spelling, or why there is none.
#[must_use]
pub fn advice(text: &str) -> Option<String> {
    if text.starts_with("unix://") || text.starts_with("unixs://") {
        return Some("a node has a port, no socket in the file system: write \"HOST:PORT\"".to_owned());
    }
    let parts: Vec<String> = text.split(',').filter_map(meant_or_right).collect();
    if parts.len() > 1 {
        let list: Vec<String> = parts.iter().map(|part| format!("\"{part}\"")).collect();
        return Some(format!("did you mean {}?", list.join(", ")));
    }
    let secure = if text.contains("https://") { " (this version serves no TLS)" } else { "" };
    meant(text).map(|address| format!("did you mean \"{address}\"?{secure}"))
}

fn meant_or_right(text: &str) -> Option<String> {
    let text = text.trim();
    NodeId::parse(text).is_ok().then(|| text.to_owned()).or_else(|| meant(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_etcd_are_understood_and_not_taken() {
        for (text, address) in [
            ("http://127.0.0.1:2379", "127.0.0.1:2379"),
            ("https://h:2379/", "h:2379"),
            ("2379", "127.0.0.1:2379"),
            (":2379", "127.0.0.1:2379"),
            ("0.0.0.0:2379", "127.0.0.1:2379"),
            ("infra0=http://10.0.0.1:2380", "10.0.0.1:2380"),
            ("infra0=h:2380", "h:2380"),
        ] {
            assert_eq!(meant(text).as_deref(), Some(address), "{text}");
            assert!(advice(text).unwrap().contains(address), "{text}");
        }
        for text in ["h:1", "", "nowhere", "http://", "h:99999", "[x"] {
            assert_eq!(meant(text), None, "{text}");
        }
        assert!(advice("unix:///run/x.sock").unwrap().contains("no socket in the file system"));
        assert!(advice("https://h:1").unwrap().contains("no TLS"));
        assert_eq!(advice("http://a:1,b:2").unwrap(), "did you mean \"a:1\", \"b:2\"?");
    }
}
