//! What people write: the configuration.

use std::path::Path;

use super::source::Source;
use super::target;
use crate::config;

const VALID: &str = include_str!("../../cluster.toml");

/// Mistakes in lines, so that most of the text stays what it is.
fn mistake(source: &mut Source, bytes: &[u8]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    for _ in 0..=source.below(3) {
        let at = source.below(lines.len());
        match source.below(4) {
            0 => {
                let line = source.pick(&lines).clone();
                lines.insert(at, line);
            }
            1 => {
                let open = *source.pick(&[b"[".as_slice(), b"{a=", b"a.", b"\"\"\"", b"[[", b"'"]);
                let most = *source.pick(&[3, 50, 3000]);
                let times = 1 + source.below(most);
                lines[at].extend(open.repeat(times));
            }
            2 => {
                let number = source.number().to_string();
                lines[at].extend_from_slice(number.as_bytes());
            }
            _ => lines[at] = source.mistakes(&lines[at]),
        }
    }
    lines.join(&b'\n')
}

#[test]
fn configurations() {
    let decode = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let none = |_: &str| -> std::io::Result<Vec<std::net::SocketAddr>> { Ok(Vec::new()) };
        if let Err(error) = config::parse(Path::new("/cluster.toml"), &text, &none) {
            // What is printed points into the text.
            let _ = error.to_string();
        }
        Ok(())
    };
    let everything = VALID.lines().map(|line| line.trim_start_matches("# ")).collect::<Vec<_>>().join("\n");
    let mut target = target(
        "text::configurations",
        vec![VALID.as_bytes().to_vec(), everything.into_bytes(), b"nodes = [\"127.0.0.1:1\"]\n".to_vec()],
        &mistake,
        &decode,
    );
    // A document as a tree, with the place of everything.
    target.fixed_bytes = 1 << 20;
    target.run();
}
