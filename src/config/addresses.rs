//! Which addresses mean the same socket, and where their order may surprise.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::view::NodeId;

use super::Resolver;

/// The sockets an address means, with mapped IPv4 forms folded into plain IPv4. Without a resolver a name means none.
///
/// # Errors
/// In words, where it means none.
pub(super) fn sockets(node: &NodeId, resolver: Option<Resolver<'_>>) -> Result<BTreeSet<SocketAddr>, String> {
    let (host, _) = node.as_str().rsplit_once(':').unwrap_or((node.as_str(), ""));
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
        && inner.parse::<Ipv6Addr>().is_err()
    {
        return Err(format!("[{inner}] is not an IPv6 address"));
    }
    let looks_numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if looks_numeric && host.parse::<IpAddr>().is_err() {
        return Err(format!("{host} is not an IPv4 address"));
    }
    let found = match resolver {
        Some(resolver) => {
            let found =
                resolver(node.as_str()).map_err(|cause| format!("{host} cannot be resolved: {cause}"))?;
            if found.is_empty() {
                return Err(format!("{host} resolves to no address"));
            }
            found
        }
        None => node.as_str().parse().into_iter().collect(),
    };
    let plain = found.into_iter().map(|socket| SocketAddr::new(socket.ip().to_canonical(), socket.port()));
    let sockets: BTreeSet<SocketAddr> = plain.collect();
    if sockets.iter().any(|socket| socket.ip().is_unspecified()) {
        return Err(format!(
            "{host} names every interface of the host: a node needs an address that the others can call"
        ));
    }
    Ok(sockets)
}

/// Warns of each neighbouring pair whose order by bytes is not the order a reader of numbers expects.
#[must_use]
pub fn byte_order_warnings(nodes: &[NodeId]) -> Vec<String> {
    let mut sorted: Vec<&NodeId> = nodes.iter().collect();
    sorted.sort();
    sorted
        .windows(2)
        .filter(|pair| numeric(pair[0]) > numeric(pair[1]))
        .map(|pair| {
            format!(
                "{} sorts before {}: the lowest address leads, and addresses are compared byte by byte",
                pair[0], pair[1]
            )
        })
        .collect()
}

/// What a reader compares: each run of digits as a number, all else as it stands.
fn numeric(node: &NodeId) -> Vec<(String, u64)> {
    let mut parts: Vec<(String, u64)> = vec![(String::new(), 0)];
    let mut in_number = false;
    for character in node.as_str().chars() {
        let last = parts.len() - 1;
        match character.to_digit(10) {
            Some(digit) => {
                in_number = true;
                parts[last].1 = parts[last].1.saturating_mul(10).saturating_add(u64::from(digit));
            }
            None if in_number => {
                in_number = false;
                parts.push((character.to_string(), 0));
            }
            None => parts[last].0.push(character),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> NodeId {
        NodeId::parse(text).unwrap()
    }

    #[test]
    fn mapped_and_long_forms_mean_the_same_socket() {
        let same = |a: &str, b: &str| {
            let resolve = super::super::resolve;
            let (a, b) =
                (sockets(&node(a), Some(&resolve)).unwrap(), sockets(&node(b), Some(&resolve)).unwrap());
            !a.is_disjoint(&b)
        };
        assert!(same("127.0.0.1:1", "[::ffff:127.0.0.1]:1"));
        assert!(same("[::1]:1", "[0:0:0:0:0:0:0:1]:1"));
        assert!(same("localhost:1", "127.0.0.1:1"));
        assert!(!same("127.0.0.1:1", "127.0.0.1:2"));
        assert!(!same("127.0.0.1:1", "127.0.0.2:1"));
    }

    #[test]
    fn what_means_no_socket_is_refused() {
        let resolve = super::super::resolve;
        assert!(sockets(&node("[xyz]:1"), Some(&resolve)).unwrap_err().contains("IPv6"));
        assert!(sockets(&node("300.0.0.1:1"), None).unwrap_err().contains("IPv4"));
        assert!(sockets(&node("h:1"), Some(&|_: &str| Ok(vec![]))).unwrap_err().contains("resolves to no"));
        let everywhere: super::super::Resolver<'_> = &|_: &str| Ok(vec!["0.0.0.0:1".parse().unwrap()]);
        assert!(sockets(&node("h:1"), Some(everywhere)).unwrap_err().contains("every interface"));
    }

    #[test]
    fn without_a_resolver_a_name_means_nothing_and_a_number_itself() {
        assert!(sockets(&node("no-such-host.invalid:1"), None).unwrap().is_empty());
        assert_eq!(
            sockets(&node("127.0.0.1:1"), None).unwrap(),
            sockets(&node("[::ffff:127.0.0.1]:1"), None).unwrap()
        );
    }

    #[test]
    fn only_a_surprising_order_is_warned_of() {
        let warn =
            |texts: &[&str]| byte_order_warnings(&texts.iter().map(|text| node(text)).collect::<Vec<_>>());
        assert_eq!(warn(&["127.0.0.1:2379", "127.0.0.1:2380"]), Vec::<String>::new());
        let warnings = warn(&["127.0.0.1:9999", "127.0.0.1:10000"]);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("127.0.0.1:10000 sorts before 127.0.0.1:9999"));
        assert_eq!(warn(&["10.0.0.9:1", "10.0.0.10:1"]).len(), 1);
    }
}
