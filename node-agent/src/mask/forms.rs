//! The forms in which a value may show up.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// The fewest bytes of a form: shorter ones would mask ordinary text.
const LEAST: usize = 4;
/// The fewest bytes of a line, and of a value in base64, that are masked alone.
const LEAST_PART: usize = 8;
/// The longest value that is looked for in base64.
const MOST_BASE64: usize = 16 << 10;
/// Columns at which programs break base64.
const COLUMNS: [usize; 2] = [64, 76];

/// Whether a program that breaks base64 into lines may do so after so many digits in a row.
pub(super) fn may_break_after(digits: usize) -> bool {
    COLUMNS.contains(&digits)
}

/// Whether base64 has such a digit, in either alphabet.
pub(super) const fn is_digit(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

/// The forms of a value: as it is, without space around it, its lines, as JSON writes it, and the lines of its base64, between which
/// something else may be printed.
pub(super) fn of(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![value.to_vec(), value.trim_ascii().to_vec()];
    forms.extend(lines(value));
    if let Ok(text) = std::str::from_utf8(value) {
        let quoted = serde_json::Value::from(text.trim_end()).to_string();
        // Without the quotes around it; those in it are escaped.
        forms.push(quoted.as_bytes()[1..quoted.len() - 1].to_vec());
    }
    if value.len() <= MOST_BASE64 {
        for digits in [value, value.trim_ascii()].into_iter().flat_map(|value| base64(value, 0)) {
            for columns in COLUMNS.into_iter().filter(|columns| digits.len() > *columns) {
                let lines = digits.chunks(columns).filter(|line| line.len() >= LEAST_PART);
                forms.extend(lines.map(<[u8]>::to_vec));
            }
        }
    }
    forms.retain(|form| form.len() >= LEAST);
    forms.sort();
    forms.dedup();
    forms
}

/// The digits of a value in base64, wherever it begins in the text that was encoded. A program may break them into lines.
pub(super) fn in_base64(value: &[u8]) -> Vec<Vec<u8>> {
    if value.len() > MOST_BASE64 {
        return Vec::new();
    }
    let values = [value, value.trim_ascii()].into_iter();
    let mut forms: Vec<Vec<u8>> =
        values.flat_map(|value| (0..3).flat_map(move |before| base64(value, before))).collect();
    forms.retain(|form| form.len() >= LEAST_PART);
    forms.sort();
    forms.dedup();
    forms
}

/// A form in UTF-16, of either order of bytes, if it is text.
pub(super) fn in_utf_16(form: &[u8]) -> Vec<Vec<u8>> {
    let Ok(text) = std::str::from_utf8(form) else { return Vec::new() };
    let of_order = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect();
    vec![of_order(u16::to_le_bytes), of_order(u16::to_be_bytes)]
}

/// The lines of a value of several; what marks the ends of a key or certificate is no secret.
fn lines(value: &[u8]) -> Vec<Vec<u8>> {
    let lines = value.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
    lines.filter(|line| line.len() >= LEAST_PART && !line.starts_with(b"-----")).map(<[u8]>::to_vec).collect()
}

/// What of a value's base64, in both alphabets, is the same whatever stands in front of it, if that has so many bytes more than a
/// multiple of three, and after it.
fn base64(value: &[u8], before: usize) -> [Vec<u8>; 2] {
    let mut content = vec![0; before];
    content.extend_from_slice(value);
    // Digits that hold bits of what stands before, and the last one if it holds bits of what comes after.
    let first = [0, 2, 3][before];
    let last = content.len() * 8 / 6;
    [STANDARD_NO_PAD.encode(&content), URL_SAFE_NO_PAD.encode(&content)]
        .map(|encoded| encoded.as_bytes().get(first..last).unwrap_or_default().to_vec())
}
