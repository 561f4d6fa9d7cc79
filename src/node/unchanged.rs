//! A file that can be read and seems to be written: what is written stays in memory and is gone with the process.
//! A state that was not closed needs recovery before it can be read; on this it can have it without being changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// What is written is kept in pieces of this size, in bytes.
const PIECE_BYTES: u64 = 4096;

/// See the head of the module.
#[derive(Debug)]
pub struct Unchanged {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    length: u64,
    /// So much of the file on the disk is still to be seen.
    on_disk: u64,
    /// By number; whole pieces.
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Unchanged {
    /// Opens an existing file for reading.
    ///
    /// # Errors
    /// From the system.
    pub fn open(path: &Path) -> io::Result<Unchanged> {
        let file = File::open(path)?;
        let on_disk = file.metadata()?.len();
        let written = Written { length: on_disk, on_disk, pieces: BTreeMap::new() };
        Ok(Unchanged { file, written: Mutex::new(written) })
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One piece as it is on the disk, zeros where the disk has nothing.
    fn piece_on_disk(&self, written: &Written, number: u64) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; usize::try_from(PIECE_BYTES).expect("small")];
        let start = number * PIECE_BYTES;
        let there = written.on_disk.saturating_sub(start).min(PIECE_BYTES);
        self.file.read_exact_at(&mut piece[..usize::try_from(there).expect("small")], start)?;
        Ok(piece)
    }
}

/// Number of the piece, where in it, and how much of `left` fits.
fn place(offset: u64, left: usize) -> (u64, usize, usize) {
    let within = usize::try_from(offset % PIECE_BYTES).expect("small");
    let room = usize::try_from(PIECE_BYTES).expect("small") - within;
    (offset / PIECE_BYTES, within, room.min(left))
}

impl StorageBackend for Unchanged {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset + out.len() as u64 > written.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < out.len() {
            let (number, within, count) = place(offset + done as u64, out.len() - done);
            let target = &mut out[done..done + count];
            match written.pieces.get(&number) {
                Some(piece) => target.copy_from_slice(&piece[within..within + count]),
                None => {
                    target.copy_from_slice(&self.piece_on_disk(&written, number)?[within..within + count]);
                }
            }
            done += count;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut written = self.written();
        if length < written.length {
            written.on_disk = written.on_disk.min(length);
            written.pieces.retain(|number, _| number * PIECE_BYTES < length);
            let (number, within, _) = place(length, 0);
            if let Some(piece) = written.pieces.get_mut(&number) {
                piece[within..].fill(0);
            }
        }
        written.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        let mut done = 0;
        while done < data.len() {
            let (number, within, count) = place(offset + done as u64, data.len() - done);
            if !written.pieces.contains_key(&number) {
                let piece = self.piece_on_disk(&written, number)?;
                written.pieces.insert(number, piece);
            }
            let piece = written.pieces.get_mut(&number).expect("inserted just now");
            piece[within..within + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_the_file_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let before: Vec<u8> = (0..10_000_u32).map(|number| number as u8).collect();
        std::fs::write(&path, &before).unwrap();
        let file = Unchanged::open(&path).unwrap();
        file.set_len(20_000).unwrap();
        file.write(4090, &[0xee; 20]).unwrap();
        file.write(15_000, &[0xdd; 9]).unwrap();
        let mut expected = before.clone();
        expected.resize(20_000, 0);
        expected[4090..4110].fill(0xee);
        expected[15_000..15_009].fill(0xdd);
        let mut whole = vec![0; 20_000];
        file.read(0, &mut whole).unwrap();
        assert_eq!(whole, expected);
        assert!(file.read(19_999, &mut [0; 2]).is_err(), "beyond the end");
        file.set_len(4100).unwrap();
        file.set_len(9000).unwrap();
        expected[4100..].fill(0);
        let mut shorter = vec![0xff; 9000];
        file.read(0, &mut shorter).unwrap();
        assert_eq!(shorter, expected[..9000], "what was cut is gone");
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
