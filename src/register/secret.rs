//! The secret that the nodes of one cluster share: random bytes in a file of the register's directory, which only the
//! cluster's user can read. A peer shows by it that it belongs to the cluster (R38).
//!
//! The file is made together with the register's directory. In a directory of an older program it is made once every
//! member of the cluster knows of it (R37), because one that does not would be refused by those that do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Its name in the register's directory.
const NAME: &str = "secret";
/// How long it is.
const LENGTH: usize = 32;

/// Shows that whoever made it knew the secret: HMAC-SHA256.
pub type Proof = [u8; 32];

/// The cluster's secret.
#[derive(Clone)]
pub struct Secret([u8; LENGTH]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

impl Secret {
    /// A proof over several parts. Each is preceded by its length, so that no two lists of parts look the same.
    #[must_use]
    pub fn prove(&self, parts: &[&[u8]]) -> Proof {
        self.over(parts).finalize().into_bytes().into()
    }

    /// True where `proof` is over these parts. Takes as long for a wrong proof as for a right one.
    #[must_use]
    pub fn verify(&self, parts: &[&[u8]], proof: &[u8]) -> bool {
        self.over(parts).verify_slice(proof).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of any length will do");
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Where the secret of one cluster is.
#[derive(Debug, Clone)]
pub struct Place(PathBuf);

impl Place {
    /// In the directory of a register.
    #[must_use]
    pub fn of(register: &Path) -> Place {
        Place(register.to_owned())
    }

    /// The secret; `None` where the cluster has none yet.
    ///
    /// # Errors
    /// What the system said; a file of another length is an error, too.
    pub fn read(&self) -> io::Result<Option<Secret>> {
        let mut file = match File::open(self.0.join(NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::with_capacity(LENGTH + 1);
        io::Read::take(&mut file, LENGTH as u64 + 1).read_to_end(&mut bytes)?;
        let wrong = |bytes: Vec<u8>| {
            let path = self.0.join(NAME);
            let text = format!("{} holds {} bytes, not {LENGTH}", path.display(), bytes.len());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        <[u8; LENGTH]>::try_from(bytes).map(|bytes| Some(Secret(bytes))).map_err(wrong)
    }

    /// The secret, made if there is none. Whole and durable when this returns; of several that make one at a time the
    /// first wins, and all get the same.
    ///
    /// # Errors
    /// What the system said; there is none then, or one that another made.
    pub fn ensure(&self) -> io::Result<Secret> {
        if let Some(secret) = self.read()? {
            return Ok(secret);
        }
        let bytes: [u8; LENGTH] = rand::random();
        let unfinished = self.0.join(format!("{NAME}-{}-{:016x}", std::process::id(), rand::random::<u64>()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
        // A link never replaces what another has put there.
        let linked = written.and_then(|()| fs::hard_link(&unfinished, self.0.join(NAME)));
        let _ = fs::remove_file(&unfinished);
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        File::open(&self.0)?.sync_all()?;
        self.read()?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn all_who_make_it_at_once_get_the_same_and_only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::of(directory.path());
        assert!(place.read().unwrap().is_none());
        let made: Vec<Secret> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(|| place.ensure().unwrap())).collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        let kept = place.read().unwrap().unwrap();
        assert!(made.iter().all(|secret| secret.0 == kept.0));
        let mode = fs::metadata(directory.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_damaged_secret_is_an_error_and_not_none() {
        let directory = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], &[7; 31], &[7; 33]] {
            fs::write(directory.path().join(NAME), bytes).unwrap();
            let error = Place::of(directory.path()).read().unwrap_err();
            assert!(error.to_string().contains("secret holds"), "{error}");
        }
    }

    #[test]
    fn a_proof_holds_for_its_parts_and_its_secret_only() {
        let (ours, other) = (Secret([1; LENGTH]), Secret([2; LENGTH]));
        let proof = ours.prove(&[b"ab", b"c"]);
        assert!(ours.verify(&[b"ab", b"c"], &proof));
        assert!(!ours.verify(&[b"a", b"bc"], &proof) && !ours.verify(&[b"ab", b"c", b""], &proof));
        assert!(!other.verify(&[b"ab", b"c"], &proof));
        assert!(!ours.verify(&[b"ab", b"c"], &proof[..31]) && !ours.verify(&[b"ab", b"c"], b""));
    }

    /// RFC 4231, test case 2, without the lengths that stand before each part.
    #[test]
    fn the_proof_is_the_standard_one() {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"Jefe").unwrap();
        mac.update(b"what do ya want for nothing?");
        let bytes: Proof = mac.finalize().into_bytes().into();
        let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hexadecimal, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
