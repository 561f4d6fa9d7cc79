//! Ports that a node may lose or may not have: those that the system gives to outgoing connections, and those of root.

use std::fs;

use crate::view::NodeId;

/// What the system says of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
struct System {
    /// Given to outgoing connections, the first and the last.
    ephemeral: Option<(u16, u16)>,
    /// Kept out of those.
    reserved: Vec<(u16, u16)>,
    /// Those below it are root's.
    unprivileged_from: u16,
    /// We are root.
    is_root: bool,
}

/// Warns of ports that another program may have when a node starts again, or that this user may not use.
#[must_use]
pub fn port_warnings(nodes: &[NodeId]) -> Vec<String> {
    warnings(nodes, &look())
}

fn look() -> System {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let range = read("ip_local_port_range");
    let mut ends = range.split_ascii_whitespace().filter_map(|text| text.parse().ok());
    System {
        ephemeral: ends.next().zip(ends.next()),
        reserved: ranges(&read("ip_local_reserved_ports")),
        unprivileged_from: read("ip_unprivileged_port_start").trim().parse().unwrap_or(1024),
        is_root: nix::unistd::geteuid().is_root(),
    }
}

/// Such as `8080,9148-9200`.
fn ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (from, to) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        Some((from.parse().ok()?, to.parse().ok()?))
    };
    text.split(',').filter_map(range).collect()
}

fn warnings(nodes: &[NodeId], system: &System) -> Vec<String> {
    let port = |node: &NodeId| node.as_str().rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let named = |which: &dyn Fn(u16) -> bool| {
        let found: Vec<&str> =
            nodes.iter().filter(|node| port(node).is_some_and(which)).map(NodeId::as_str).collect();
        (!found.is_empty()).then(|| found.join(", "))
    };
    let within = |port: u16, (from, to): (u16, u16)| (from..=to).contains(&port);
    let ephemeral = |port: u16| {
        system.ephemeral.is_some_and(|range| within(port, range))
            && !system.reserved.iter().any(|range| within(port, *range))
    };
    let mut told = Vec::new();
    if let (Some(nodes), Some((from, to))) = (named(&ephemeral), system.ephemeral) {
        told.push(format!(
            "{nodes}: the system gives ports from {from} to {to} to outgoing connections, so another program may have \
             it when the node starts again: take a lower port, or add it to net.ipv4.ip_local_reserved_ports"
        ));
    }
    let privileged = |port: u16| !system.is_root && port < system.unprivileged_from;
    if let Some(nodes) = named(&privileged) {
        told.push(format!(
            "{nodes}: only root may listen on ports below {}: take a higher port",
            system.unprivileged_from
        ));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(addresses: &[&str]) -> Vec<String> {
        let nodes: Vec<NodeId> = addresses.iter().map(|text| NodeId::parse(text).unwrap()).collect();
        let system = System {
            ephemeral: Some((32_768, 60_999)),
            reserved: ranges("40000,41000-41010\n"),
            unprivileged_from: 1024,
            is_root: false,
        };
        warnings(&nodes, &system)
    }

    #[test]
    fn ports_of_outgoing_connections_and_of_root_are_named() {
        assert_eq!(warned(&["h:2379", "h:32767", "h:61000", "h:1024"]), Vec::<String>::new());
        let told = warned(&["h:32768", "h:2379", "h:60999", "h:80"]);
        assert_eq!(told.len(), 2);
        assert!(
            told[0].starts_with("h:32768, h:60999: the system gives ports from 32768 to 60999"),
            "{told:?}"
        );
        assert!(told[1].starts_with("h:80: only root may listen on ports below 1024"), "{told:?}");
    }

    #[test]
    fn reserved_ports_are_as_good_as_low_ones() {
        assert_eq!(warned(&["h:40000", "h:41005"]), Vec::<String>::new());
        assert_eq!(warned(&["h:40001"]).len(), 1);
    }
}
