//! A log file that never grows beyond a bound: `log`, then older `log.1` to `log.N`. Appends and renames, no more.
//! Whoever reads them follows by inode, so a line is in exactly one of the files whatever name it has by now.
//!
//! A log serves the database and not the other way round: what cannot be written is counted, told once on stderr, and
//! told in the file when it can be written to again. Nothing here panics, and a line costs one `stat` and one `write`.
//! The `file-rotate` crate was weighed and falls short of that: it asserts that names exist between its own
//! system calls (here an assertion aborts the process), closes the old file before it has a new one, and drops lines
//! without a word while it has none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::Level;

use super::line::{Fields, Line, Value};

/// How much is kept of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A file is put aside before a line would make it longer than this many bytes.
    pub max_size: u64,
    /// So many older files are kept; from 1.
    pub keep: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_size: 16 << 20, keep: 4 }
    }
}

impl Limits {
    /// The smallest and the largest size of a file, in bytes.
    pub const SIZES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;
    /// The fewest and the most older files.
    pub const KEEPS: std::ops::RangeInclusive<u32> = 1..=100;
    /// Of what a process says outside its log, which is little.
    pub const OUTPUT: Limits = Limits { max_size: 1 << 20, keep: 1 };
}

/// A file that is appended to by lines and put aside when it is full.
#[derive(Debug)]
pub struct Rotated {
    path: PathBuf,
    limits: Limits,
    file: File,
    /// To notice that somebody else put the file aside, or took it away.
    inode: u64,
    length: u64,
    /// The file ends in the middle of a line: a disk was full, or a process was killed.
    torn: bool,
    /// It could not be put aside; tried again when it has grown as much again.
    held_up_until: u64,
    /// Lines that could not be written since the last one that could.
    lost: u64,
}

impl Rotated {
    /// Opens the file for appending and makes it, and its directory, where it is not there: for their owner only.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Rotated> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Rotated::within_its_directory(path, limits)
    }

    fn within_its_directory(path: &Path, limits: Limits) -> io::Result<Rotated> {
        let file = append(path)?;
        let metadata = file.metadata()?;
        let (inode, length) = (metadata.ino(), metadata.len());
        let torn = metadata.is_file() && ends_within_a_line(path, length);
        Ok(Rotated { path: path.to_owned(), limits, file, inode, length, torn, held_up_until: 0, lost: 0 })
    }

    /// Appends one line, which ends in a newline. What cannot be written is lost, and that is told.
    pub fn append(&mut self, line: &[u8]) {
        self.stay_at_the_path();
        let full = self.length.saturating_add(line.len() as u64) > self.limits.max_size;
        if full && self.length > 0 && self.length >= self.held_up_until {
            self.put_aside();
        }
        if self.lost > 0 {
            let told = self.loss();
            if self.write(&told).is_err() {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if let Err(error) = self.write(line) {
            self.lost = 1;
            complain(&format!(
                "cannot write to {}: {error}; lines are lost until it can be",
                self.path.display()
            ));
        }
    }

    /// One write: all of the line, or an error. What was written of it is ended before the next line.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let mended: Vec<u8>;
        let bytes = if self.torn {
            mended = [b"\n", line].concat();
            &mended
        } else {
            line
        };
        let written = loop {
            match self.file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.length += written as u64;
        if written > 0 {
            self.torn = written < bytes.len();
        }
        if written < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// The path may lead to another file by now: another program puts logs aside, or a second process did.
    fn stay_at_the_path(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            return;
        }
        // Where it cannot be opened the old file still can be written to, which is better than nothing. A directory
        // that is gone was taken away on purpose and is not made again.
        if let Ok(other) = Rotated::within_its_directory(&self.path, self.limits) {
            *self = Rotated { lost: self.lost, ..other };
        }
    }

    /// The new file is there before the old one loses its name, so that there is always one to write to.
    fn put_aside(&mut self) {
        let fresh = suffixed(&self.path, "new");
        let result = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)
            .and_then(|_| append(&fresh))
            .and_then(|file| Ok((file.metadata()?.ino(), file)))
            .and_then(|opened| shift(&self.path, self.limits.keep).map(|()| opened))
            .and_then(|opened| fs::rename(&fresh, &self.path).map(|()| opened));
        match result {
            Ok((inode, file)) => {
                self.file = file;
                self.inode = inode;
                self.length = 0;
                self.torn = false;
                self.held_up_until = 0;
            }
            Err(error) => {
                complain(&format!("cannot put {} aside: {error}; it goes on growing", self.path.display()));
                self.held_up_until = self.length.saturating_add(self.limits.max_size);
            }
        }
    }

    fn loss(&self) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.set("lines", Value::Unsigned(self.lost));
        let line = Line {
            at: super::stamp(crate::clock::wall()),
            level: Level::WARN,
            target: module_path!().to_owned(),
            message: "lines are missing here: the log could not be written".to_owned(),
            fields,
        };
        format!("{line}\n").into_bytes()
    }
}

/// For [`tracing_subscriber`], which hands over one line at a time. It never fails, so that nobody else complains.
impl Write for Rotated {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts a file aside where it is too long; for files that others write to and that nobody has open.
///
/// # Errors
/// What the system said.
pub fn bound(path: &Path, limits: Limits) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() > limits.max_size => shift(path, limits.keep),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The name of the older file with this number, from 1.
#[must_use]
pub fn older(path: &Path, number: u32) -> PathBuf {
    suffixed(path, &number.to_string())
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn shift(path: &Path, keep: u32) -> io::Result<()> {
    for number in (1..keep).rev() {
        match fs::rename(older(path, number), older(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(path, older(path, 1))
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn ends_within_a_line(path: &Path, length: u64) -> bool {
    let last = || -> io::Result<u8> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(length.saturating_sub(1)))?;
        let mut byte = [0];
        file.read_exact(&mut byte)?;
        Ok(byte[0])
    };
    length > 0 && last().is_ok_and(|byte| byte != b'\n')
}

/// Says it on stderr, where somebody may see it; where not even that can be written, nobody is left to tell.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn text_of(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn lines_go_to_older_files_in_order_and_the_oldest_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/log");
        let mut log = Rotated::open(&path, Limits { max_size: 20, keep: 2 }).unwrap();
        for number in 0..9 {
            log.append(format!("line {number}\n").as_bytes());
        }
        assert_eq!(text_of(&path), "line 8\n");
        assert_eq!(text_of(&older(&path, 1)), "line 6\nline 7\n");
        assert_eq!(text_of(&older(&path, 2)), "line 4\nline 5\n");
        assert!(!older(&path, 3).exists() && !suffixed(&path, "new").exists());
        for (path, mode) in
            [(path.as_path(), 0o600), (&older(&path, 1), 0o600), (path.parent().unwrap(), 0o700)]
        {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
    }

    #[test]
    fn a_restart_goes_on_with_the_file_and_ends_a_line_that_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "whole\ncut o").unwrap();
        Rotated::open(&path, Limits::default()).unwrap().append(b"next\n");
        Rotated::open(&path, Limits::default()).unwrap().append(b"last\n");
        assert_eq!(text_of(&path), "whole\ncut o\nnext\nlast\n");
        Rotated::open(&path, Limits { max_size: 10, keep: 1 }).unwrap().append(b"anew\n");
        assert_eq!(text_of(&path), "anew\n", "the bound holds for what was there before, too");
    }

    #[test]
    fn a_file_that_somebody_else_put_aside_or_took_away_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Rotated::open(&path, Limits::default()).unwrap();
        log.append(b"one\n");
        fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        log.append(b"two\n");
        assert_eq!(text_of(&path), "two\n");
        fs::remove_file(&path).unwrap();
        log.append(b"three\n");
        assert_eq!(text_of(&path), "three\n");
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_goes_on_growing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::create_dir_all(older(&path, 1).join("in the way")).unwrap();
        let mut log = Rotated::open(&path, Limits { max_size: 8, keep: 1 }).unwrap();
        for number in 0..4 {
            log.append(format!("line {number}\n").as_bytes());
        }
        assert_eq!(text_of(&path), "line 0\nline 1\nline 2\nline 3\n");
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else_and_their_number_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut log = Rotated::open(&path, Limits::default()).unwrap();
        for _ in 0..3 {
            log.append(b"into the void\n");
        }
        assert_eq!(log.lost, 3);
        fs::remove_file(&path).unwrap();
        log.append(b"room again\n");
        let text = text_of(&path);
        let (told, rest) = text.split_once('\n').unwrap();
        let told = Line::parse(told).unwrap();
        assert_eq!((told.level, told.fields.number("lines"), rest), (Level::WARN, Some(3), "room again\n"));
    }

    #[test]
    fn only_what_is_too_long_is_put_aside_at_a_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stderr");
        let limits = Limits { max_size: 3, keep: 1 };
        bound(&path, limits).unwrap();
        fs::write(&path, "abc").unwrap();
        bound(&path, limits).unwrap();
        assert!(path.exists());
        fs::write(&path, "abcd").unwrap();
        bound(&path, limits).unwrap();
        assert!(!path.exists() && text_of(&older(&path, 1)) == "abcd");
    }
}
