//! Masks secrets in what leaves the node.
//!
//! ```text
//!  values ─► forms (as it is, lines, JSON, base64) ─► Automaton ─► Mask ─┬─► Masker: a stream, in pieces of any size
//!                                                                       ├─► texts of records
//!                                                                       └─► Finder: a file, in pieces of any size
//! ```
//!
//! *Guarantees*: no form of a value passes, however the stream is cut. Whatever is covered by a form, overlapping ones included,
//! becomes `***`. Bytes wait only while they could be the beginning of a form; everything else goes on at once.
//!
//! *Caveats*: a program can change a value in ways that nobody foresees, such as encryption or a letter a line.

mod automaton;
mod forms;

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use windlass_crds::protocol::RecordBody;

use self::automaton::Automaton;

/// What stands in place of a secret.
const MASKED: &[u8] = b"***";

/// The secrets of one attempt. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Mask(Option<Arc<Automaton>>);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Mask(…)" } else { "Mask(nothing)" })
    }
}

impl Mask {
    /// Masks these values.
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let forms: Vec<Vec<u8>> = values.into_iter().flat_map(forms::of).collect();
        Self((!forms.is_empty()).then(|| Arc::new(Automaton::new(&forms))))
    }

    /// Finds these values in files too, which may be written in UTF-16.
    pub(crate) fn of_files<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let forms: Vec<Vec<u8>> = values.into_iter().flat_map(forms::in_files).collect();
        Self((!forms.is_empty()).then(|| Arc::new(Automaton::new(&forms))))
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
        let mut masker = Masker::new(self.clone());
        let mut masked = masker.push(text.as_bytes());
        masked.extend(masker.finish(false));
        // A form that is no text could take a part of a character away.
        String::from_utf8(masked)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
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

/// Looks for secrets in a stream, piece by piece, and changes nothing.
#[derive(Clone, Debug)]
pub(crate) struct Finder {
    mask: Mask,
    state: u32,
}

impl Finder {
    /// At the beginning of a stream.
    pub(crate) const fn new(mask: Mask) -> Self {
        Self { mask, state: automaton::ROOT }
    }

    /// Takes a piece. Tells whether a form has ended in it, wherever it has begun.
    pub(crate) fn finds(&mut self, piece: &[u8]) -> bool {
        let Some(automaton) = &self.mask.0 else { return false };
        piece.iter().any(|byte| {
            self.state = automaton.next(self.state, *byte);
            automaton.at(self.state).1 > 0
        })
    }
}

/// Masks a stream, piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Masker {
    mask: Mask,
    state: u32,
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
}

impl Masker {
    /// At the beginning of a stream.
    pub(crate) fn new(mask: Mask) -> Self {
        Self { mask, state: automaton::ROOT, held: Held::default(), open: VecDeque::new(), gone: 0 }
    }

    /// Where another left off.
    pub(crate) fn resume(mask: Mask, held: Held) -> Self {
        let mut state = automaton::ROOT;
        if let Some(automaton) = &mask.0 {
            // What is held back is the longest end that begins a form, so the same state is found from it alone.
            for (byte, _) in &held.bytes {
                state = automaton.next(state, *byte);
            }
        }
        let open = held.bytes.iter().enumerate().filter(|(_, (_, covered))| !covered);
        let open = open.map(|(at, _)| at).collect();
        Self { mask, state, held, open, gone: 0 }
    }

    /// What is kept back.
    pub(crate) const fn held(&self) -> &Held {
        &self.held
    }

    /// Takes a piece and gives what can go on.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let Some(automaton) = self.mask.0.clone() else { return piece.to_vec() };
        let mut out = Vec::with_capacity(piece.len());
        for byte in piece {
            self.state = automaton.next(self.state, *byte);
            self.open.push_back(self.held.bytes.len() + self.gone);
            self.held.bytes.push_back((*byte, false));
            let (depth, longest) = automaton.at(self.state);
            let covered = self.held.bytes.len().saturating_sub(longest) + self.gone;
            while let Some(at) = self.open.pop_back_if(|at| *at >= covered) {
                self.held.bytes[at - self.gone].1 = true;
            }
            while self.held.bytes.len() > depth {
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
        self.state = automaton::ROOT;
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
    /// Whether nothing is kept back.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Lets the first byte go.
    fn release(&mut self, out: &mut Vec<u8>) {
        let Some((byte, covered)) = self.bytes.pop_front() else { return };
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
