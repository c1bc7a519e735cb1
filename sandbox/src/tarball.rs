//! Reading tar archives of people who may mean harm: a bound for the whole, and one for what an entry has in front of its data,
//! which the reader keeps in memory (long names, extended headers).

use std::cell::Cell;
use std::io::{self, ErrorKind, Read};
use std::rc::Rc;

use tar::EntryType;

/// The most that an entry may have in front of its data; honest ones have a few kilobytes.
const MAX_HEADERS: u64 = 1 << 20;

/// An archive.
pub(crate) struct Tarball<'a> {
    archive: tar::Archive<Bounded<'a>>,
    budget: Rc<Budget>,
}

/// An entry of an archive.
pub(crate) type Entry<'e, 'a> = tar::Entry<'e, Bounded<'a>>;

/// What may still be read.
struct Budget {
    whole: Cell<u64>,
    /// Of the headers of the next entry, while they are read.
    headers: Cell<Option<u64>>,
}

impl Budget {
    fn spend(&self, bytes: u64) -> io::Result<()> {
        let left = self.whole.get().checked_sub(bytes).ok_or(ErrorKind::FileTooLarge)?;
        self.whole.set(left);
        Ok(())
    }
}

/// A reader that fails once its budget is used up.
pub(crate) struct Bounded<'a> {
    input: Box<dyn Read + 'a>,
    budget: Rc<Budget>,
}

impl<'a> Tarball<'a> {
    /// An archive of which at most `whole` bytes are read.
    pub(crate) fn new(input: impl Read + 'a, whole: u64) -> Self {
        let budget = Rc::new(Budget { whole: Cell::new(whole), headers: Cell::new(None) });
        let input = Bounded { input: Box::new(input), budget: Rc::clone(&budget) };
        Self { archive: tar::Archive::new(input), budget }
    }

    /// Calls `each` for every entry. What it leaves of an entry's data is skipped.
    ///
    /// # Errors
    /// Those of `each`, and `wrap` of those of reading: [`ErrorKind::FileTooLarge`] where the archive is larger than allowed.
    pub(crate) fn for_each<E>(
        &mut self,
        wrap: impl Fn(io::Error) -> E,
        mut each: impl FnMut(&mut Entry<'_, 'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let budget = Rc::clone(&self.budget);
        let mut entries = self.archive.entries().map_err(&wrap)?;
        loop {
            budget.headers.set(Some(MAX_HEADERS));
            let next = entries.next();
            budget.headers.set(None);
            let Some(entry) = next else { return Ok(()) };
            let mut entry = entry.map_err(&wrap)?;
            // Its holes are not in the archive, but take as long to read as if they were.
            if entry.header().entry_type() == EntryType::GNUSparse {
                budget.spend(entry.size()).map_err(&wrap)?;
            }
            each(&mut entry)?;
            io::copy(&mut entry, &mut io::sink()).map_err(&wrap)?;
        }
    }

    /// Reads what follows the archive's end, so that a reader below has seen everything. Gives how much more could have been read.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn finish(self) -> io::Result<u64> {
        io::copy(&mut self.archive.into_inner(), &mut io::sink())?;
        Ok(self.budget.whole.get())
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buffer)?;
        self.budget.spend(got as u64)?;
        if let Some(headers) = self.budget.headers.get() {
            let Some(headers) = headers.checked_sub(got as u64) else {
                let message = format!("an entry has more than {MAX_HEADERS} bytes in front of its data");
                return Err(io::Error::new(ErrorKind::InvalidData, message));
            };
            self.budget.headers.set(Some(headers));
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_name(bytes: u64) -> impl Read {
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_size(bytes);
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_cksum();
        io::Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(b'a').take(bytes))
    }

    #[test]
    fn a_name_without_end_is_not_kept_in_memory() {
        let read = |input| Tarball::new(input, u64::MAX).for_each(|error| error, |_| Ok(()));
        let error = read(long_name(1 << 40)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains("in front of its data"), "{error}");
    }

    #[test]
    fn holes_count_like_data() {
        let mut header = tar::Header::new_gnu();
        header.set_path("hole").unwrap();
        let gnu = header.as_gnu_mut().unwrap();
        // The end is marked by a piece without data. More than octal digits hold is written in binary.
        for field in [&mut gnu.sparse[0].offset, &mut gnu.realsize] {
            field[0] = 0x80;
            field[4..].copy_from_slice(&(1_u64 << 62).to_be_bytes());
        }
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(0);
        header.set_cksum();
        let read = |whole| Tarball::new(&header.as_bytes()[..], whole).for_each(|error| error, |_| Ok(()));
        assert_eq!(read(1 << 61).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn an_archive_is_read_no_further_than_allowed() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4096);
        builder.append_data(&mut header, "a", io::repeat(0).take(4096)).unwrap();
        let bytes = builder.into_inner().unwrap();
        let read = |whole| Tarball::new(&*bytes, whole).for_each(|error| error, |_| Ok(()));
        read(bytes.len() as u64).unwrap();
        assert_eq!(read(2048).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}
