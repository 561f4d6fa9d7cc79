//! The text of systemd's units. See `systemd.service(5)`, `systemd.exec(5)` and `systemd.syntax(7)`.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::supervisor::layout::Layout;
use crate::supervisor::spawn::{NONCE_FLAG, server_arguments};
use crate::view::NodeId;

/// A unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Its file.
    pub(super) name: String,
    /// What stands in it.
    pub(super) text: String,
    /// What it starts.
    pub(super) program: PathBuf,
    /// The node it is for, where it is for one.
    pub(super) node: Option<NodeId>,
}

/// The supervisor with all its nodes. Not `up --foreground`, whose nodes die with it: systemd runs the supervisor that
/// otherwise stands in the background, and `up` and `down` talk to it as they do by hand.
pub(super) fn of_cluster(config: &Config, layout: &Layout, program: &Path, user: &str) -> Unit {
    let line = |verb: &str| command(program, &[verb.into(), "--config".into(), config.path.clone().into()]);
    let mut text = head(&format!("replcluster {}: the supervisor and its nodes", config.name));
    let _ = write!(
        text,
        "\n[Service]\nType=notify\nNotifyAccess=main\nExecStart={}\n\
         # A node that cannot come to serve keeps nobody from the others: `replcluster status` shows it.\n\
         ExecStartPost=-{}\nExecStop={}\nUser={user}\n\
         # If the supervisor dies, the nodes go on and the next one takes them over: systemd must end neither them with\n\
         # it, nor all when one was out of memory.\n\
         KillMode=process\nKillSignal=SIGTERM\nOOMPolicy=continue\n\
         Restart=on-failure\nRestartSec=1\n\
         # A wrong configuration is not put right by trying again.\n\
         RestartPreventExitStatus=2\nTimeoutStartSec=120\nTimeoutStopSec=90\n",
        line("supervise"),
        line("up"),
        line("down"),
    );
    let read = [program, &config.path, layout.root()];
    text.push_str(&confinement(&config.nodes, &read, layout.root()));
    let name = format!("replcluster-{}.service", in_name(&config.name));
    Unit { name, text, program: program.to_owned(), node: None }
}

/// One node, with systemd for its supervisor.
pub(super) fn of_node(config: &Config, layout: &Layout, node: &NodeId, program: &Path, user: &str) -> Unit {
    let others: Vec<NodeId> = config.nodes.iter().filter(|other| *other != node).cloned().collect();
    // The lowest creates the cluster where the register is empty; it does no harm where it is not.
    let join = if config.nodes.first() == Some(node) { None } else { Some(others.as_slice()) };
    let arguments = server_arguments(config, layout, node, join, "");
    let mut text = head(&format!("replcluster {}: node {node}", config.name));
    let _ = write!(
        text,
        "\n[Service]\nType=notify\nNotifyAccess=main\nExecStart={}\nUser={user}\n\
         KillSignal=SIGTERM\nRestart=on-failure\nRestartSec=1\n\
         # Wrong arguments are not put right by trying again.\n\
         RestartPreventExitStatus=2\n\
         # A node may have to wait for one that knows more.\n\
         TimeoutStartSec=infinity\nTimeoutStopSec=30\n",
        command(program, &without_nonce(arguments))
    );
    text.push_str(&confinement(std::slice::from_ref(node), &[program, layout.root()], layout.root()));
    let name = format!("replserver-{}-{}.service", in_name(&config.name), in_name(node.as_str()));
    Unit { name, text, program: program.to_owned(), node: Some(node.clone()) }
}

/// What tells a supervisor its own nodes apart: here there is none.
fn without_nonce(arguments: Vec<OsString>) -> Vec<OsString> {
    match arguments.iter().position(|argument| argument == NONCE_FLAG) {
        Some(at) => arguments.iter().take(at).chain(arguments.iter().skip(at + 2)).cloned().collect(),
        None => arguments,
    }
}

fn head(description: &str) -> String {
    format!(
        "# Made by `replcluster export systemd`; make it anew when the configuration has changed.\n\
         [Unit]\nDescription={}\nDocumentation=man:replcluster(1)\nAfter=network.target\n\
         StartLimitIntervalSec=60\nStartLimitBurst=10\n",
        description.replace('%', "%%")
    )
}

/// What the processes may use; `paths` are those that they need, all of them below `writable` may be written to.
fn confinement(nodes: &[NodeId], paths: &[&Path], writable: &Path) -> String {
    let home = if paths.iter().any(|path| is_in_home(path)) { "read-only" } else { "yes" };
    let own_temporary = !paths.iter().any(|path| path.starts_with("/tmp") || path.starts_with("/var/tmp"));
    let low = nodes.iter().any(is_low_port);
    let capability = if low { "CAP_NET_BIND_SERVICE" } else { "" };
    format!(
        "LimitNOFILE=65536\nOOMScoreAdjust=-100\nUMask=0077\n\
         NoNewPrivileges=yes\nProtectSystem=strict\nReadWritePaths={}\nProtectHome={home}\nPrivateTmp={}\n\
         PrivateDevices=yes\nProtectControlGroups=yes\nProtectKernelModules=yes\nProtectKernelTunables=yes\n\
         RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\nRestrictNamespaces=yes\nRestrictRealtime=yes\n\
         RestrictSUIDSGID=yes\nLockPersonality=yes\nMemoryDenyWriteExecute=yes\nSystemCallArchitectures=native\n\
         CapabilityBoundingSet={capability}\nAmbientCapabilities={capability}\n\
         \n[Install]\nWantedBy=multi-user.target\n",
        word(writable.as_os_str(), Dollar::Kept),
        if own_temporary { "yes" } else { "no" },
    )
}

/// Ports that only a privileged process may take.
fn is_low_port(node: &NodeId) -> bool {
    let port = node.as_str().rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    port.is_some_and(|port| port < 1024)
}

/// What `ProtectHome` hides.
pub(super) fn is_in_home(path: &Path) -> bool {
    ["/home", "/root", "/run/user"].iter().any(|home| path.starts_with(home))
}

fn command(program: &Path, arguments: &[OsString]) -> String {
    let mut line = word(program.as_os_str(), Dollar::Kept);
    for argument in arguments {
        line.push(' ');
        line.push_str(&word(argument, Dollar::Doubled));
    }
    line
}

/// What `$` is in a word: variables stand only in the arguments of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dollar {
    Kept,
    Doubled,
}

/// A word as systemd reads it: quoted where it must be, with nothing in it taken for a specifier or a variable.
fn word(text: &OsStr, dollar: Dollar) -> String {
    let mut inner = String::new();
    let mut quoted = text.is_empty() || text == ";";
    for byte in text.as_bytes() {
        match byte {
            b'%' => inner.push_str("%%"),
            b'$' if dollar == Dollar::Doubled => inner.push_str("$$"),
            b'"' | b'\\' => {
                quoted = true;
                inner.push('\\');
                inner.push(char::from(*byte));
            }
            b' ' | b'\'' => {
                quoted = true;
                inner.push(char::from(*byte));
            }
            0x21..=0x7e => inner.push(char::from(*byte)),
            other => {
                quoted = true;
                let _ = write!(inner, "\\x{other:02x}");
            }
        }
    }
    if quoted { format!("\"{inner}\"") } else { inner }
}

/// A part of a unit's name.
fn in_name(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::spawn::settings;

    fn config(text: &str, path: &str) -> Config {
        crate::config::parse(Path::new(path), text, &crate::config::resolve).unwrap()
    }

    fn line<'a>(unit: &'a Unit, key: &str) -> &'a str {
        let found = unit.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {key} in:\n{}", unit.text))
    }

    const NODES: &str = "name = \"c\"\nnodes = [\"127.0.0.1:1\", \"127.0.0.1:2000\"]\n";

    #[test]
    fn words_are_escaped_as_systemd_reads_them() {
        let words = [
            ("/plain/path-1_2:3", "/plain/path-1_2:3"),
            ("with space", "\"with space\""),
            ("100%", "100%%"),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("it's", "\"it's\""),
            ("$HOME", "$$HOME"),
            (";", "\";\""),
            ("", "\"\""),
            ("a\nb", "\"a\\x0ab\""),
            ("ü", "\"\\xc3\\xbc\""),
        ];
        for (text, expected) in words {
            assert_eq!(word(OsStr::new(text), Dollar::Doubled), expected);
        }
        assert_eq!(word(OsStr::new("$HOME"), Dollar::Kept), "$HOME");
    }

    #[test]
    fn a_node_is_started_with_everything_the_configuration_says() {
        let config = config(NODES, "/srv/my cluster/100%/cluster.toml");
        let layout = Layout::new(&config);
        let unit = of_node(&config, &layout, &config.nodes[1], Path::new("/usr/bin/replserver"), "someone");
        assert_eq!(unit.name, "replserver-c-127.0.0.1_2000.service");
        let settings = settings(&config).into_iter().map(|(name, value)| format!("{name} {value} "));
        let expected = [
            "/usr/bin/replserver --address 127.0.0.1:2000 --cluster c \
             --data-dir \"/srv/my cluster/100%%/.replcluster/nodes/127.0.0.1_2000/data\" \
             --register \"file:/srv/my cluster/100%%/.replcluster/register\" --join 127.0.0.1:1 ",
            &settings.collect::<String>(),
            "--log-file \"/srv/my cluster/100%%/.replcluster/nodes/127.0.0.1_2000/log\"",
        ];
        assert_eq!(line(&unit, "ExecStart"), expected.concat());
        assert_eq!(line(&unit, "ReadWritePaths"), "\"/srv/my cluster/100%%/.replcluster\"");
        assert_eq!((line(&unit, "User"), line(&unit, "Type")), ("someone", "notify"));
        assert_eq!((line(&unit, "ProtectHome"), line(&unit, "PrivateTmp")), ("yes", "yes"));
        assert_eq!(line(&unit, "CapabilityBoundingSet"), "");
        let first = of_node(&config, &layout, &config.nodes[0], Path::new("/usr/bin/replserver"), "someone");
        assert!(!first.text.contains("--join"), "the lowest creates the cluster: {}", first.text);
        assert_eq!(line(&first, "AmbientCapabilities"), "CAP_NET_BIND_SERVICE");
    }

    #[test]
    fn a_dead_supervisor_takes_no_node_with_it() {
        let config = config(NODES, "/etc/replcluster/cluster.toml");
        let layout = Layout::new(&config);
        let unit = of_cluster(&config, &layout, Path::new("/usr/bin/replcluster"), "replcluster");
        assert_eq!(
            line(&unit, "ExecStart"),
            "/usr/bin/replcluster supervise --config /etc/replcluster/cluster.toml"
        );
        assert_eq!(
            (line(&unit, "ExecStartPost"), line(&unit, "ExecStop")),
            (
                "-/usr/bin/replcluster up --config /etc/replcluster/cluster.toml",
                "/usr/bin/replcluster down --config /etc/replcluster/cluster.toml"
            )
        );
        assert_eq!((line(&unit, "KillMode"), line(&unit, "OOMPolicy")), ("process", "continue"));
    }

    #[test]
    fn what_lies_in_a_home_or_in_tmp_stays_visible() {
        let config = config(NODES, "/home/me/cluster.toml");
        let unit = of_cluster(&config, &Layout::new(&config), Path::new("/usr/bin/replcluster"), "me");
        assert_eq!(line(&unit, "ProtectHome"), "read-only");
        let config = self::config(NODES, "/tmp/x/cluster.toml");
        let unit = of_cluster(&config, &Layout::new(&config), Path::new("/usr/bin/replcluster"), "me");
        assert_eq!(line(&unit, "PrivateTmp"), "no");
    }
}
