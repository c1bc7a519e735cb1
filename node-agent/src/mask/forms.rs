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

/// The forms of a value: as it is, without space around it, its lines, as JSON writes it, and in base64 wherever it begins in the text
/// that was encoded.
pub(super) fn of(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![value.to_vec(), value.trim_ascii().to_vec()];
    forms.extend(lines(value));
    if let Ok(text) = std::str::from_utf8(value) {
        let quoted = serde_json::Value::from(text.trim_end()).to_string();
        // Without the quotes around it; those in it are escaped.
        forms.push(quoted.as_bytes()[1..quoted.len() - 1].to_vec());
    }
    if value.len() <= MOST_BASE64 {
        for value in [value, value.trim_ascii()] {
            forms.extend(base64(value));
        }
    }
    forms.retain(|form| form.len() >= LEAST);
    forms.sort();
    forms.dedup();
    forms
}

/// The forms of a value in files: those of [`of`], and what of them is text in UTF-16, of either order of bytes.
pub(super) fn in_files(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = of(value);
    let wide: Vec<Vec<u8>> = forms
        .iter()
        .filter_map(|form| std::str::from_utf8(form).ok())
        .flat_map(|text| {
            let of_order = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect();
            [of_order(u16::to_le_bytes), of_order(u16::to_be_bytes)]
        })
        .collect();
    forms.extend(wide);
    forms
}

/// The lines of a value of several; what marks the ends of a key or certificate is no secret.
fn lines(value: &[u8]) -> Vec<Vec<u8>> {
    let lines = value.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
    lines.filter(|line| line.len() >= LEAST_PART && !line.starts_with(b"-----")).map(<[u8]>::to_vec).collect()
}

/// What of a value's base64 is the same whatever stands before and after it.
fn base64(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for before in 0..3 {
        let mut content = vec![0; before];
        content.extend_from_slice(value);
        // Digits that hold bits of what stands before, and the last one if it holds bits of what comes after.
        let first = [0, 2, 3][before];
        let last = content.len() * 8 / 6;
        for encoded in [STANDARD_NO_PAD.encode(&content), URL_SAFE_NO_PAD.encode(&content)] {
            let digits = encoded.as_bytes().get(first..last).unwrap_or_default();
            forms.push(digits.to_vec());
            if before == 0 {
                for columns in COLUMNS {
                    if digits.len() > columns {
                        forms.extend(digits.chunks(columns).map(<[u8]>::to_vec));
                    }
                }
            }
        }
    }
    forms.retain(|form| form.len() >= LEAST_PART);
    forms
}
