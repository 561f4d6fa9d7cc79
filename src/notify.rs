//! Tells a service manager how a service stands, by the protocol of `sd_notify(3)`: a datagram to `$NOTIFY_SOCKET`.
//! Without that variable nobody asked, and nothing is said.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The environment variable that names the socket; one that begins with `@` is not in the file system.
pub const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// It serves now.
pub const READY: &str = "READY=1";
/// It has begun to end.
pub const STOPPING: &str = "STOPPING=1";

/// Says `state` to whoever waits for it. That it cannot be said is worth a warning and stops nothing.
pub fn tell(state: &str) {
    let Some(name) = std::env::var_os(SOCKET_VARIABLE).filter(|name| !name.is_empty()) else { return };
    if let Err(error) = send(&name, state) {
        tracing::warn!("cannot tell {} {state}: {error}", name.display());
    }
}

fn send(name: &OsStr, state: &str) -> io::Result<()> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(hidden) => SocketAddr::from_abstract_name(hidden)?,
        None => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(format!("{state}\n").as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_socket_in_the_file_system_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        assert_eq!(heard(&socket), "READY=1\n");
    }

    #[test]
    fn a_socket_without_a_file_is_told() {
        let name = format!("replcluster-notify-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), STOPPING).unwrap();
        assert_eq!(heard(&socket), "STOPPING=1\n");
    }

    #[test]
    fn nobody_there_is_an_error_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        assert!(send(directory.path().join("none").as_os_str(), READY).is_err());
    }
}
