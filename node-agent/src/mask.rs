//! Masks secrets in what leaves the node.
//!
//! ```text
//!  values ─► forms (as it is, lines, JSON) ──────────► Automaton ─┬─► Mask ─┬─► Masker: a stream, in pieces of any size
//!         └► forms in base64, perhaps broken into lines ► Automaton ─┘         ├─► texts of records
//!                                                                             └─► FileFinder: a file, in pieces of any size
//! ```
//!
//! *Guarantees*: no form of a value passes, however the stream is cut. Whatever is covered by a form, overlapping ones included,
//! becomes `***`. Bytes wait only while they could be the beginning of a form; everything else goes on at once.
//!
//! *Caveats*: a program can change a value in ways that nobody foresees, such as encryption or a letter a line.

mod automaton;
mod broken;
mod files;
mod forms;

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use windlass_crds::protocol::RecordBody;

use self::automaton::{Automaton, Text};
use self::broken::Broken;
pub(crate) use self::files::{FileFinder, FileMask};

/// What stands in place of a secret.
const MASKED: &[u8] = b"***";

/// The secrets of one attempt. Cheap to clone. A value is known by its place among those that were given, from 0.
#[derive(Clone, Default)]
pub(crate) struct Mask(Option<Arc<Finders>>);

/// What finds the forms of the secrets.
struct Finders {
    /// Those that are written as they are.
    whole: Automaton,
    /// Those in base64, which may be broken into lines.
    broken: Automaton,
}

/// How far a stream was read.
#[derive(Clone, Debug)]
struct Reading {
    whole: u32,
    broken: Broken,
}

impl Reading {
    /// After so many digits of base64 in a row, of which none begins a form.
    fn after(digits: usize) -> Self {
        Self { whole: automaton::ROOT, broken: Broken::after(digits) }
    }

    /// Reads the byte at a place. Gives where what has begun a form begins, and where the longest form begins that ends here; both are
    /// the next place if there is none.
    fn read(&mut self, finders: &Finders, byte: u8, place: usize) -> (usize, usize) {
        self.whole = finders.whole.next(self.whole, byte);
        let (depth, longest) = finders.whole.at(self.whole);
        let (begun, found) = self.broken.read(&finders.broken, byte, place);
        (begun.min(place + 1 - depth), found.min(place + 1 - longest))
    }

    /// Which value's form has ended with the last byte, where one has.
    fn owner(&self, finders: &Finders) -> Option<u32> {
        finders.whole.owner(self.whole).or_else(|| self.broken.owner(&finders.broken))
    }
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Mask(…)" } else { "Mask(nothing)" })
    }
}

impl Mask {
    /// Masks these values.
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let (mut whole, mut broken) = (Vec::new(), Vec::new());
        for (owner, value) in (0..).zip(values) {
            whole.extend(forms::of(value).into_iter().map(|form| (form, owner)));
            broken.extend(forms::in_base64(value).into_iter().map(|form| (form, owner)));
        }
        Self::finding(whole, broken)
    }

    /// Masks these values in UTF-16 as far as they are text that needs more than ASCII: a [`FileFinder`] sees all other text in
    /// UTF-16 by itself.
    fn in_utf_16<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut wide = Vec::new();
        for (owner, value) in (0..).zip(values) {
            let forms = forms::of(value).into_iter().filter(|form| !form.is_ascii());
            wide.extend(forms.flat_map(|form| forms::in_utf_16(&form)).map(|form| (form, owner)));
        }
        Self::finding(wide, Vec::new())
    }

    fn finding(whole: Vec<Text>, broken: Vec<Text>) -> Self {
        // A value that has a form in base64 has others as well.
        let is_something = !whole.is_empty();
        let finders = || Arc::new(Finders { whole: Automaton::new(whole), broken: Automaton::new(broken) });
        Self(is_something.then(finders))
    }

    /// Whether there is nothing to mask.
    pub(crate) const fn is_nothing(&self) -> bool {
        self.0.is_none()
    }

    /// A text without secrets.
    pub(crate) fn text(&self, text: String) -> String {
        if self.is_nothing() {
            return text;
        }
        // A form that is no text could take a part of a character away.
        String::from_utf8(self.bytes(text.as_bytes()))
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// Bytes without secrets.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut masker = Masker::new(self.clone());
        let mut masked = masker.push(bytes);
        masked.extend(masker.finish(false));
        masked
    }

    /// A record without secrets. Output is masked before it is cut into records.
    pub(crate) fn record(&self, mut body: RecordBody) -> RecordBody {
        if self.is_nothing() {
            return body;
        }
        match &mut body {
            // Facts are of the node and no job's: where a job with secrets asks for them, they are its output only.
            RecordBody::Started { .. }
            | RecordBody::StepStarted { .. }
            | RecordBody::Log { .. }
            | RecordBody::Facts(_) => {}
            RecordBody::Artifacts { items } => {
                for artifact in items {
                    artifact.name = self.text(std::mem::take(&mut artifact.name));
                    self.optional(&mut artifact.refused);
                }
            }
            RecordBody::StepEnded(ended) => self.optional(&mut ended.message),
            RecordBody::Event { level: _, reason: _, message, data } => {
                *message = self.text(std::mem::take(message));
                if let Some(data) = data {
                    self.json(data);
                }
            }
            RecordBody::Terminal(terminal) => self.optional(&mut terminal.message),
        }
        body
    }

    fn optional(&self, text: &mut Option<String>) {
        *text = text.take().map(|text| self.text(text));
    }

    fn json(&self, value: &mut serde_json::Value) {
        use serde_json::Value;
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => *text = self.text(std::mem::take(text)),
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(map) => {
                for (key, mut item) in std::mem::take(map) {
                    self.json(&mut item);
                    map.insert(self.text(key), item);
                }
            }
        }
    }
}

/// Looks for secrets in a stream, byte by byte, and changes nothing.
#[derive(Debug)]
struct Finder {
    mask: Mask,
    reading: Reading,
    place: usize,
}

impl Finder {
    /// At the beginning of a stream.
    fn new(mask: Mask) -> Self {
        Self { mask, reading: Reading::after(0), place: 0 }
    }

    /// Takes a byte. Tells of which value a form ends with it.
    fn read(&mut self, byte: u8) -> Option<u32> {
        let finders = self.mask.0.as_deref()?;
        let (_, found) = self.reading.read(finders, byte, self.place);
        self.place += 1;
        (found < self.place).then(|| self.reading.owner(finders)).flatten()
    }
}

/// Masks a stream, piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Masker {
    mask: Mask,
    reading: Reading,
    held: Held,
    /// Which held bytes no form covers yet, in order, so that each is looked at once only; counted from the beginning.
    open: VecDeque<usize>,
    /// How many bytes have gone on.
    gone: usize,
}

/// What a [`Masker`] keeps back because it could be the beginning of a form: it must be kept as secret as the secret itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Each byte, and whether a form covers it already.
    bytes: VecDeque<(u8, bool)>,
    /// The last byte that went on was covered, so the mask is written.
    masking: bool,
    /// How many digits of base64 in a row went on last.
    #[serde(default)]
    digits: usize,
}

impl Masker {
    /// At the beginning of a stream.
    pub(crate) fn new(mask: Mask) -> Self {
        Self::resume(mask, Held::default())
    }

    /// Where another left off.
    pub(crate) fn resume(mask: Mask, held: Held) -> Self {
        let mut reading = Reading::after(held.digits);
        if let Some(finders) = &mask.0 {
            // What is held back holds the longest end that begins a form, so the same states are found from it alone.
            for (place, (byte, _)) in held.bytes.iter().enumerate() {
                reading.read(finders, *byte, place);
            }
        }
        let open = held.bytes.iter().enumerate().filter(|(_, (_, covered))| !covered);
        let open = open.map(|(at, _)| at).collect();
        Self { mask, reading, held, open, gone: 0 }
    }

    /// What is kept back.
    pub(crate) const fn held(&self) -> &Held {
        &self.held
    }

    /// Takes a piece and gives what can go on.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let Some(finders) = self.mask.0.clone() else { return piece.to_vec() };
        let mut out = Vec::with_capacity(piece.len());
        for byte in piece {
            let place = self.held.bytes.len() + self.gone;
            self.open.push_back(place);
            self.held.bytes.push_back((*byte, false));
            let (begun, found) = self.reading.read(&finders, *byte, place);
            while let Some(at) = self.open.pop_back_if(|at| *at >= found) {
                self.held.bytes[at - self.gone].1 = true;
            }
            while self.gone < begun {
                self.release(&mut out);
            }
        }
        out
    }

    /// Gives what is left at the end of the stream; where that was cut, the beginning of a form is masked too.
    pub(crate) fn finish(&mut self, cut: bool) -> Vec<u8> {
        if cut {
            self.held.bytes.iter_mut().for_each(|(_, covered)| *covered = true);
        }
        let mut out = Vec::new();
        while !self.held.bytes.is_empty() {
            self.release(&mut out);
        }
        self.reading = Reading::after(self.held.digits);
        out
    }

    /// Lets the first byte go.
    fn release(&mut self, out: &mut Vec<u8>) {
        self.open.pop_front_if(|at| *at == self.gone);
        self.held.release(out);
        self.gone += 1;
    }
}

impl Held {
    /// Whether the stream goes on as from its beginning.
    pub(crate) fn is_nothing(&self) -> bool {
        self.bytes.is_empty() && self.digits == 0
    }

    /// Lets the first byte go.
    fn release(&mut self, out: &mut Vec<u8>) {
        let Some((byte, covered)) = self.bytes.pop_front() else { return };
        self.digits = broken::digits_after(self.digits, byte);
        if !covered {
            out.push(byte);
        } else if !self.masking {
            out.extend_from_slice(MASKED);
        }
        self.masking = covered;
    }
}

#[cfg(test)]
mod tests;
