//! The file: entries with sums over them, written and read from one end to the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use windlass_store::transfer::{Cell, ColumnKind, TableShape};

use super::{Error, FORMAT, Header, Manifest, Sum, file_error};

/// The first entry.
const HEADER: &str = "windlass-backup.json";
/// The last entry.
const MANIFEST: &str = "manifest.json";
/// Rows: each entry begins with a line that is the shape of a table, and goes on with a row a line.
pub(super) const DATABASE: &str = "database";
/// Files of the state folder.
pub(super) const STATE: &str = "state";
/// Bodies.
pub(super) const BODIES: &str = "bodies";

/// What the header of an entry is called whose name does not fit there.
const PAX: &str = "long-name";

/// The unit of a tar.
const BLOCK: usize = 512;
/// An entry that is read into memory is no larger than this: rows come in pieces below it.
const PIECE_LIMIT: u64 = 1 << 30;

/// Sums of parts, as entries go by.
#[derive(Default)]
struct Sums(BTreeMap<String, (u64, u64, Sha256)>);

impl Sums {
    fn begin(&mut self, name: &str, len: u64) {
        let part = name.split('/').next().unwrap_or(name);
        let (entries, bytes, hash) = self.0.entry(part.to_owned()).or_default();
        *entries += 1;
        *bytes += len;
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(len.to_le_bytes());
    }

    fn content(&mut self, name: &str, bytes: &[u8]) {
        let part = name.split('/').next().unwrap_or(name);
        if let Some((_, _, hash)) = self.0.get_mut(part) {
            hash.update(bytes);
        }
    }

    fn finish(self) -> BTreeMap<String, Sum> {
        let sum = |(part, (entries, bytes, hash)): (String, (u64, u64, Sha256))| {
            (part, Sum { entries, bytes, sha256: hex::encode(hash.finalize()) })
        };
        self.0.into_iter().map(sum).collect()
    }
}

/// Writes a backup.
pub(super) struct Writer {
    out: GzEncoder<BufWriter<File>>,
    path: PathBuf,
    sums: Sums,
    at: u64,
}

impl Writer {
    /// Begins a backup in a file that is empty.
    pub(super) fn begin(file: File, path: &Path, header: &Header) -> Result<Self, Error> {
        let out = GzEncoder::new(BufWriter::with_capacity(1 << 16, file), Compression::fast());
        let at = u64::try_from(header.at.as_second()).unwrap_or(0);
        let mut writer = Self { out, path: path.to_owned(), sums: Sums::default(), at };
        writer.entry(HEADER, &serde_json::to_vec(header).expect("a header is plain data"))?;
        Ok(writer)
    }

    /// Writes an entry whose content is at hand.
    pub(super) fn entry(&mut self, name: &str, content: &[u8]) -> Result<(), Error> {
        let len = content.len() as u64;
        self.start(name, len)?;
        self.write(name, content)?;
        self.end(len)
    }

    /// Begins an entry of this length.
    pub(super) fn start(&mut self, name: &str, len: u64) -> Result<(), Error> {
        self.sums.begin(name, len);
        let mut header = tar::Header::new_ustar();
        if header.set_path(name).is_err() {
            // It does not fit, and comes before, in an entry of its own; the header only says which that is.
            let attribute = pax_path(name);
            let mut before = tar::Header::new_ustar();
            before.set_entry_type(tar::EntryType::XHeader);
            self.head(before, PAX, attribute.len() as u64)?;
            self.out.write_all(attribute.as_bytes()).map_err(file_error("write", &self.path))?;
            self.end(attribute.len() as u64)?;
            return self.head(header, PAX, len);
        }
        self.head(header, name, len)
    }

    fn head(&mut self, mut header: tar::Header, path: &str, len: u64) -> Result<(), Error> {
        header.set_path(path).map_err(file_error("write", &self.path))?;
        header.set_size(len);
        header.set_mode(0o600);
        header.set_mtime(self.at);
        header.set_cksum();
        self.out.write_all(header.as_bytes()).map_err(file_error("write", &self.path))
    }

    /// Goes on with the entry that was begun.
    pub(super) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.sums.content(name, bytes);
        self.out.write_all(bytes).map_err(file_error("write", &self.path))
    }

    /// Ends an entry of this length.
    pub(super) fn end(&mut self, len: u64) -> Result<(), Error> {
        let over = usize::try_from(len % BLOCK as u64).expect("it is less than a block");
        let padding = [0; BLOCK];
        let rest = if over == 0 { 0 } else { BLOCK - over };
        self.out.write_all(&padding[..rest]).map_err(file_error("write", &self.path))
    }

    /// Writes the manifest, with the sums, and flushes all to disk.
    pub(super) fn finish(mut self, mut manifest: Manifest) -> Result<Manifest, Error> {
        manifest.parts = std::mem::take(&mut self.sums).finish();
        let path = self.path.clone();
        let failed = || file_error("write", &path);
        self.entry(MANIFEST, &serde_json::to_vec(&manifest).expect("a manifest is plain data"))?;
        self.out.write_all(&[0; 2 * BLOCK]).map_err(failed())?;
        let buffered = self.out.finish().map_err(failed())?;
        let file = buffered.into_inner().map_err(io::IntoInnerError::into_error).map_err(failed())?;
        file.sync_all().map_err(failed())?;
        Ok(manifest)
    }
}

/// A name as the extended header of POSIX says it: `LENGTH path=NAME` and a line feed, where the length counts itself too.
fn pax_path(name: &str) -> String {
    let rest = format!(" path={name}\n");
    let mut len = rest.len();
    while len != rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    format!("{len}{rest}")
}

/// An entry between header and manifest.
pub(super) enum Entry<'e> {
    /// Rows of a table.
    Rows(TableShape, Vec<Vec<Cell>>),
    /// A file of the state folder, by its name there.
    State(String, Vec<u8>),
    /// A body, by its key.
    Body(String, &'e mut dyn Read),
}

/// Reads a backup from one end to the other, hands its entries to `each`, and checks all that it says of itself.
pub(super) fn read<E: From<Error>>(
    path: &Path,
    mut each: impl FnMut(&Header, Entry<'_>) -> Result<(), E>,
) -> Result<(Header, Manifest), E> {
    let file = File::open(path).map_err(file_error("read", path))?;
    let mut archive = tar::Archive::new(GzDecoder::new(BufReader::with_capacity(1 << 16, file)));
    let damaged = |problem: String| Error::Damaged { path: path.to_owned(), problem };
    let broken = |error: io::Error| damaged(problem(&error));
    let mut header: Option<Header> = None;
    let mut manifest: Option<Manifest> = None;
    let mut sums = Sums::default();
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    let mut bodies = 0;
    let foreign = |problem: String| Error::Foreign { path: path.to_owned(), problem };
    let entries = archive.entries().map_err(|error| foreign(problem(&error)))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| match header {
            None => foreign(problem(&error)),
            Some(_) => broken(error),
        })?;
        let name = entry.path().map_err(broken)?.to_string_lossy().into_owned();
        let len = entry.size();
        if manifest.is_some() {
            return Err(damaged(format!("`{name}` comes after its end")).into());
        }
        let Some(header) = &header else {
            if name != HEADER || len > PIECE_LIMIT {
                return Err(foreign(format!("it begins with `{name}`, not with `{HEADER}`")).into());
            }
            let content = whole(&mut entry, len).map_err(broken)?;
            header = Some(read_header(path, &content)?);
            sums.begin(&name, len);
            sums.content(&name, &content);
            continue;
        };
        if name == MANIFEST {
            let content = whole(&mut entry, len).map_err(broken)?;
            let read = serde_json::from_slice(&content);
            manifest = Some(read.map_err(|error| damaged(format!("`{MANIFEST}` cannot be read: {error}")))?);
            continue;
        }
        sums.begin(&name, len);
        match name.split_once('/') {
            Some((DATABASE, _)) => {
                let content = whole(&mut entry, len).map_err(broken)?;
                sums.content(&name, &content);
                let (shape, found) =
                    parse(&content).map_err(|problem| damaged(format!("`{name}` {problem}")))?;
                *rows.entry(shape.name.clone()).or_default() += found.len() as u64;
                each(header, Entry::Rows(shape, found))?;
            }
            Some((STATE, file)) => {
                let content = whole(&mut entry, len).map_err(broken)?;
                sums.content(&name, &content);
                each(header, Entry::State(file.to_owned(), content))?;
            }
            Some((BODIES, key)) => {
                bodies += 1;
                let mut content = Summed { inner: &mut entry, name: &name, sums: &mut sums };
                each(header, Entry::Body(key.to_owned(), &mut content))?;
                io::copy(&mut content, &mut io::sink()).map_err(broken)?;
            }
            Some(_) | None => return Err(damaged(format!("`{name}` belongs to no backup")).into()),
        }
    }
    let (Some(header), Some(manifest)) = (header, manifest) else {
        return Err(damaged("it is cut short".to_owned()).into());
    };
    // What follows the last entry, and with it the sum that gzip keeps.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(broken)?;
    let after = io::copy(&mut rest.into_inner(), &mut io::sink()).map_err(file_error("read", path))?;
    if after > 0 {
        return Err(damaged(format!("{after} bytes follow its end")).into());
    }
    let found = sums.finish();
    for part in manifest.parts.keys().chain(found.keys()) {
        if found.get(part) != manifest.parts.get(part) {
            return Err(damaged(format!("the sum of `{part}` is not the one that `{MANIFEST}` says")).into());
        }
    }
    if rows != manifest.tables || bodies != manifest.bodies {
        return Err(damaged(format!("it holds other rows or bodies than `{MANIFEST}` says")).into());
    }
    Ok((header, manifest))
}

/// Adds up what is read.
struct Summed<'s, R> {
    inner: R,
    name: &'s str,
    sums: &'s mut Sums,
}

impl<R: Read> Read for Summed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sums.content(self.name, &buffer[..count]);
        Ok(count)
    }
}

fn read_header(path: &Path, content: &[u8]) -> Result<Header, Error> {
    let foreign = |problem: String| Error::Foreign { path: path.to_owned(), problem };
    let json: Json = serde_json::from_slice(content)
        .map_err(|error| foreign(format!("`{HEADER}` cannot be read: {error}")))?;
    // Before anything else, because a newer format may say the rest in another way.
    let format = json.get("format").and_then(Json::as_u64).and_then(|format| u32::try_from(format).ok());
    match format {
        Some(1..=FORMAT) => {}
        Some(found) => {
            let program =
                json.get("program").and_then(Json::as_str).unwrap_or("of unknown version").to_owned();
            return Err(Error::NewerFormat { path: path.to_owned(), found, program });
        }
        None => return Err(foreign(format!("`{HEADER}` names no format"))),
    }
    serde_json::from_value(json).map_err(|error| foreign(format!("`{HEADER}` cannot be read: {error}")))
}

fn whole(entry: &mut impl Read, len: u64) -> io::Result<Vec<u8>> {
    if len > PIECE_LIMIT {
        return Err(io::Error::other(format!("an entry of {len} bytes is too large")));
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    if content.len() as u64 == len { Ok(content) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it is cut short".to_owned(),
        _ => format!("it cannot be unpacked: {error}"),
    }
}

/// A row as a line.
pub(super) fn line(row: &[Cell], into: &mut Vec<u8>) {
    let cell = |cell: &Cell| match cell {
        Cell::Null => Json::Null,
        Cell::Int(value) => Json::from(*value),
        Cell::Text(text) => Json::from(text.as_str()),
        Cell::Bytes(bytes) => Json::from(BASE64.encode(bytes)),
    };
    let row: Vec<Json> = row.iter().map(cell).collect();
    serde_json::to_writer(&mut *into, &row).expect("numbers and text become JSON");
    into.push(b'\n');
}

/// The shape of a table as a line.
pub(super) fn first_line(shape: &TableShape) -> Vec<u8> {
    let mut line = serde_json::to_vec(shape).expect("a shape is plain data");
    line.push(b'\n');
    line
}

fn parse(content: &[u8]) -> Result<(TableShape, Vec<Vec<Cell>>), String> {
    let mut lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let shape = lines.next().ok_or_else(|| "is empty".to_owned())?;
    let shape: TableShape =
        serde_json::from_slice(shape).map_err(|error| format!("names no table: {error}"))?;
    let mut rows = Vec::new();
    for (number, line) in lines.enumerate() {
        let bad = |problem: &str| format!("has a row that cannot be read, {}: {problem}", number + 1);
        let values: Vec<Json> = serde_json::from_slice(line).map_err(|error| bad(&error.to_string()))?;
        if values.len() != shape.columns.len() {
            return Err(bad("it has other columns"));
        }
        let cells =
            values.into_iter().zip(&shape.columns).map(|(value, column)| match (value, column.kind) {
                (Json::Null, _) => Ok(Cell::Null),
                (Json::Number(number), ColumnKind::Int) => number.as_i64().map(Cell::Int).ok_or(()),
                (Json::String(text), ColumnKind::Text) => Ok(Cell::Text(text)),
                (Json::String(text), ColumnKind::Bytes) => {
                    BASE64.decode(text).map(Cell::Bytes).map_err(|_| ())
                }
                (_, ColumnKind::Int | ColumnKind::Text | ColumnKind::Bytes) => Err(()),
            });
        rows.push(cells.collect::<Result<_, ()>>().map_err(|()| bad("a value is not of its column's kind"))?);
    }
    Ok((shape, rows))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn header() -> Header {
        Header {
            format: FORMAT,
            program: "0.0.0".to_owned(),
            schema: 1,
            version: 1,
            at: jiff::Timestamp::UNIX_EPOCH,
            secrets: false,
        }
    }

    /// Bodies under these keys, written and read back, and the names that `tar` lists.
    fn kept(keys: &[String]) -> (Vec<(String, String)>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backup");
        let mut writer = Writer::begin(File::create_new(&path).unwrap(), &path, &header()).unwrap();
        for key in keys {
            writer.entry(&format!("{BODIES}/{key}"), key.as_bytes()).unwrap();
        }
        let manifest = Manifest {
            tables: BTreeMap::new(),
            bodies: keys.len() as u64,
            missing_bodies: 0,
            parts: BTreeMap::new(),
        };
        writer.finish(manifest).unwrap();
        let mut found = Vec::new();
        read::<Error>(&path, |_, entry| {
            let Entry::Body(key, content) = entry else { panic!("there are only bodies") };
            let mut text = String::new();
            content.read_to_string(&mut text).unwrap();
            found.push((key, text));
            Ok(())
        })
        .unwrap();
        let listed = Command::new("tar").arg("-tzf").arg(&path).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
        (found, listed)
    }

    #[test]
    fn a_body_of_any_key_is_kept_under_it_and_tar_lists_it() {
        let hash = "9".repeat(64);
        let uid = uuid::Uuid::max();
        let mut keys = vec![
            format!("inputs/99/{hash}.{uid}"),
            format!("damaged/{hash}.{uid}"),
            format!("logs/{uid}/{}/{}", u64::MAX, u64::MAX),
            format!("inputs/{}/{}", "a".repeat(155), "b".repeat(100)),
        ];
        keys.extend((1..=300).map(|len| "k".repeat(len)));
        // Where the length of the record comes to have one digit more.
        keys.extend((975..=1000).map(|len| "k".repeat(len)));
        let (found, listed) = kept(&keys);
        assert_eq!(found, keys.iter().map(|key| (key.clone(), key.clone())).collect::<Vec<_>>());
        let expected: Vec<String> = std::iter::once(HEADER.to_owned())
            .chain(keys.iter().map(|key| format!("{BODIES}/{key}")))
            .chain([MANIFEST.to_owned()])
            .collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn what_fits_into_a_header_is_written_as_it_always_was() {
        assert_eq!(pax_path("a"), "9 path=a\n");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backup");
        let mut writer = Writer::begin(File::create_new(&path).unwrap(), &path, &header()).unwrap();
        writer.entry("bodies/logs/a/1/1", b"x").unwrap();
        let manifest =
            Manifest { tables: BTreeMap::new(), bodies: 1, missing_bodies: 0, parts: BTreeMap::new() };
        writer.finish(manifest).unwrap();
        let file = BufReader::new(File::open(&path).unwrap());
        let mut archive = tar::Archive::new(GzDecoder::new(file));
        let raw = archive.entries().unwrap().raw(true).map(|entry| entry.unwrap().header().entry_type());
        assert_eq!(raw.collect::<Vec<_>>(), [tar::EntryType::Regular; 3]);
    }
}
