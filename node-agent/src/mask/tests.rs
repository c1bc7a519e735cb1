use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::json;
use windlass_crds::protocol::{StepEnded, Terminal, TerminalPhase};
use windlass_crds::sandbox_job::StepUsage;

use super::*;

fn mask(values: &[&str]) -> Mask {
    Mask::new(values.iter().map(|value| value.as_bytes()))
}

fn masked(values: &[&str], text: &str) -> String {
    mask(values).text(text.to_owned())
}

/// What a stream becomes that comes in pieces; after each piece the masker is made anew from what it has kept back, as after a
/// restart of the agent.
fn streamed(mask: &Mask, pieces: &[&[u8]]) -> Vec<u8> {
    let mut held = Held::default();
    let mut out = Vec::new();
    for piece in pieces {
        let mut masker = Masker::resume(mask.clone(), held);
        out.extend(masker.push(piece));
        let kept = serde_json::to_string(masker.held()).unwrap();
        held = serde_json::from_str(&kept).unwrap();
    }
    out.extend(Masker::resume(mask.clone(), held).finish(false));
    out
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[test]
fn every_form_of_a_value_is_masked_and_nothing_else() {
    let value = "correct horse \"battery\"";
    let encoded = |text: &str| STANDARD.encode(text);
    for (text, expected) in [
        (format!("a {value} b"), "a *** b".to_owned()),
        ("nothing to see, correct?".to_owned(), "nothing to see, correct?".to_owned()),
        (json!({"v": value}).to_string(), r#"{"v":"***"}"#.to_owned()),
        (format!("{value}{value}"), "***".to_owned()),
        (format!("x{}y", &value[..10]), format!("x{}y", &value[..10])),
    ] {
        assert_eq!(masked(&[value], &text), expected, "{text}");
    }
    for before in ["", "u", "us", "user:", "x".repeat(50).as_str()] {
        for after in ["", "!", "!!", "\n"] {
            let text = encoded(&format!("{before}{value}{after}"));
            let shown = masked(&[value], &text);
            let kept = shown.replace("***", "").len();
            // At most the digits at both ends that hold bits of what is around.
            assert!(
                shown.contains("***") && kept <= (before.len() + after.len()) * 4 / 3 + 6,
                "{text} {shown}"
            );
        }
    }
}

#[test]
fn lines_of_a_key_are_masked_alone_and_its_frame_is_not() {
    let key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----\n";
    assert_eq!(masked(&[key], &format!("<{key}>")), "<***>");
    let listed = "  MIIEvQIBADANBg  # 1\n\tkqhkiG9w0BAQEF\n-----END KEY-----";
    assert_eq!(masked(&[key], listed), "  ***  # 1\n\t***\n-----END KEY-----");
    assert_eq!(masked(&["hunter2\n"], "it is hunter2."), "it is ***.", "without the end of its line");
}

#[test]
fn base64_that_a_program_has_broken_into_lines_is_masked() {
    let value: String = (0..400).map(|n: u32| char::from_digit(n * 7 % 36, 36).unwrap()).collect();
    let encoded = STANDARD.encode(&value);
    for columns in [64, 76] {
        let lines: Vec<&str> =
            encoded.as_bytes().chunks(columns).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let shown = masked(&[&value], &lines.join("\n"));
        let longest = shown.split(['\n', '*']).map(str::len).max().unwrap();
        assert!(longest < 8, "{shown}");
    }
}

#[test]
fn a_value_in_the_middle_of_base64_is_masked_across_the_ends_of_its_lines() {
    let value = "correct horse battery staple";
    let mask = mask(&[value]);
    // Everything that says something of the value alone, and what is around it.
    let most = |around: usize| around * 4 / 3 + 8;
    for (columns, end) in [(64, "\n"), (76, "\n"), (76, "\r\n")] {
        for before in 0..120 {
            let text = format!("{}{value}{}", "x".repeat(before), "y".repeat(50));
            let encoded = STANDARD.encode(&text);
            let lines: Vec<&str> =
                encoded.as_bytes().chunks(columns).map(|line| std::str::from_utf8(line).unwrap()).collect();
            let broken = format!("it is: {}{end}", lines.join(end));
            let pieces: Vec<&[u8]> = broken.as_bytes().chunks(7).collect();
            let shown = String::from_utf8(streamed(&mask, &pieces)).unwrap();
            let kept = shown.replace(['\r', '\n'], "").replace("***", "").len() - "it is: ".len();
            assert!(shown.matches("***").count() == 1 && kept <= most(before + 50), "{broken}{shown}");
        }
    }
}

#[test]
fn lines_wait_for_the_next_one_only_where_base64_would_be_broken() {
    let value = "correct horse battery staple";
    let begins = &STANDARD.encode(value)[..6];
    let mut masker = Masker::new(mask(&[value]));
    let line = format!("{begins}\n");
    assert_eq!(masker.push(line.as_bytes()), line.as_bytes(), "it is too short to be broken there");
    let line = format!("{}{begins}\n", "x".repeat(70));
    assert_eq!(masker.push(line.as_bytes()), "x".repeat(70).as_bytes());
    assert_eq!(masker.push(b"other"), format!("{begins}\nother").as_bytes());
}

#[test]
fn what_overlaps_is_masked_as_a_whole() {
    assert_eq!(masked(&["abcdef", "defghi"], "<abcdefghi>"), "<***>");
    assert_eq!(masked(&["abcd", "xabcdy"], "xabcdy xabcdz"), "*** x***z");
    assert_eq!(masked(&["aaaa"], "aaaaaa"), "***");
}

#[test]
fn a_stream_that_was_cut_does_not_end_in_the_beginning_of_a_secret() {
    let mut masker = Masker::new(mask(&["swordfish"]));
    assert_eq!(masker.push(b"it is sword"), b"it is ");
    assert!(!masker.held().bytes.is_empty());
    assert_eq!(masker.clone().finish(false), b"sword");
    assert_eq!(masker.finish(true), b"***");
}

#[test]
fn what_is_no_secret_goes_on_at_once() {
    let mut masker = Masker::new(mask(&["swordfish"]));
    assert_eq!(masker.push(b"hello s"), b"hello ");
    assert_eq!(masker.push(b"ailor"), b"sailor");
    assert!(masker.held().bytes.is_empty());
    let mut nothing = Masker::new(Mask::new([]));
    assert_eq!(nothing.push(b"swordfish"), b"swordfish");
}

#[test]
fn records_are_masked_in_every_text() {
    let mask = mask(&["swordfish"]);
    let text = || "is swordfish!".to_owned();
    let data = json!({"a": ["swordfish", 1], "swordfish": {"b": "xswordfishx"}});
    let bodies = [
        RecordBody::Event { level: "info".into(), reason: "R".into(), message: text(), data: Some(data) },
        RecordBody::StepEnded(StepEnded {
            step: 0,
            succeeded: false,
            reason: "Exited".into(),
            message: Some(text()),
            exit_code: None,
            signal: None,
            usage: StepUsage::default(),
        }),
        RecordBody::Terminal(Terminal {
            phase: TerminalPhase::Failed,
            reason: "StepFailed".into(),
            message: Some(text()),
            exit_code: None,
            last_sequence: 0,
        }),
    ];
    for body in bodies {
        let json = serde_json::to_string(&mask.record(body)).unwrap();
        assert!(!json.contains("swordfish") && json.contains("is ***!"), "{json}");
    }
}

#[test]
fn a_file_in_utf_16_is_looked_through_too() {
    for (value, other) in [("šwordfish-1", "the šwordfish-2 is"), ("swordfish-1", "the swordfish-2 is")] {
        let values = ["something else entirely", value].map(str::as_bytes);
        let finder = || FileFinder::new(&FileMask::new(Mask::new(values), values));
        for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
            for before in [&b""[..], b"x", b"\0", b"xy", b"x\0\0"] {
                let wide =
                    |text: &str| [before, &*text.encode_utf16().flat_map(bytes).collect::<Vec<_>>()].concat();
                let text = wide(&format!("the {value} is"));
                let (one, two) = text.split_at(13);
                let mut cut = finder();
                assert_eq!((cut.finds(one), cut.finds(two)), (None, Some(1)), "{value}");
                assert_eq!(finder().finds(&wide(other)), None, "{value}");
                let in_lines =
                    wide(&String::from_utf8(broken_base64(format!("{:70}{value} ", "").as_bytes())).unwrap());
                assert_eq!(finder().finds(&in_lines), Some(1), "{value}");
            }
        }
        assert_eq!(finder().finds(value.as_bytes()), Some(1));
    }
    assert_eq!(FileFinder::new(&FileMask::new(Mask::new([]), [])).finds(b"swordfish"), None);
}

#[test]
fn what_finds_many_secrets_needs_little_memory() {
    let values: Vec<Vec<u8>> = (0..128_u32)
        .map(|n| (0..1024_u32).map(|at| (n * 31 + at * at * 7 + at / 3) as u8).collect())
        .collect();
    let mask = Mask::new(values.iter().map(Vec::as_slice));
    let finders = mask.0.unwrap();
    let bytes = finders.whole.memory() + finders.broken.memory();
    assert!(bytes < 100 << 20, "{bytes} bytes for 128 KiB of secrets");
}

/// As `base64` prints it.
fn broken_base64(content: &[u8]) -> Vec<u8> {
    STANDARD.encode(content).as_bytes().chunks(76).flat_map(|line| [line, b"\n"].concat()).collect()
}

/// Secrets of few letters, so that they overlap with each other and with the text.
fn secret() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(prop::sample::select(b"ab\n".to_vec()), 4..12),
        prop::collection::vec(any::<u8>(), 4..40),
    ]
    .prop_filter("the mask itself may be shown", |secret| !secret.contains(&b'*'))
}

proptest! {
    #[test]
    fn no_cut_of_a_stream_lets_a_secret_pass(
        secrets in prop::collection::vec(secret(), 1..4),
        text in prop::collection::vec(prop::sample::select(b"abc\n".to_vec()), 0..60),
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..3u8), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut text = text;
        for (which, place, form) in places {
            let secret = &secrets[which.index(secrets.len())];
            let form = match form {
                0 => secret.clone(),
                1 => STANDARD.encode(secret).into_bytes(),
                _ => broken_base64(&[b"a before it".repeat(5), secret.clone()].concat()),
            };
            let at = place.index(text.len() + 1);
            text.splice(at..at, form);
        }
        let mask = Mask::new(secrets.iter().map(Vec::as_slice));
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]).collect();
        let out = streamed(&mask, &pieces);
        for secret in &secrets {
            prop_assert!(!contains(&out, secret), "{:?} is in {:?}", secret, out);
        }
        prop_assert_eq!(&out, &streamed(&mask, &[&text]), "the cuts make no difference");
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        prop_assert_eq!(&out, &streamed(&mask, &bytes));
    }

    #[test]
    fn a_finder_finds_what_would_be_masked_however_the_stream_is_cut(
        secrets in prop::collection::vec(secret(), 1..4),
        text in prop::collection::vec(prop::sample::select(b"abc\n".to_vec()), 0..60),
        place in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>())),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut text = text;
        if let Some((which, place, in_base64)) = place {
            let (at, secret) = (place.index(text.len() + 1), &secrets[which.index(secrets.len())]);
            let before = b"a before it".repeat(5);
            let form = if in_base64 { broken_base64(&[&*before, secret].concat()) } else { secret.clone() };
            text.splice(at..at, form);
        }
        let mask = Mask::new(secrets.iter().map(Vec::as_slice));
        let is_masked = streamed(&mask, &[&text]) != text;
        let mut finder = Finder::new(mask.clone());
        prop_assert_eq!(text.iter().any(|byte| finder.read(*byte).is_some()), is_masked);
        let (one, two) = text.split_at(cut.index(text.len() + 1));
        let found_in_file = |pieces: &[&[u8]]| {
            let mut finder = FileFinder::new(&FileMask::new(mask.clone(), secrets.iter().map(Vec::as_slice)));
            pieces.iter().any(|piece| finder.finds(piece).is_some())
        };
        prop_assert_eq!(found_in_file(&[one, two]), is_masked);
        prop_assert_eq!(found_in_file(&text.chunks(1).collect::<Vec<_>>()), is_masked);
    }

    #[test]
    fn a_stream_without_secrets_stays_as_it_is(
        text in prop::collection::vec(prop::sample::select(b"abc\n".to_vec()), 0..200),
        cut in any::<prop::sample::Index>(),
    ) {
        let mask = mask(&["abxxxxba", "cccccccccccd"]);
        let (one, two) = text.split_at(cut.index(text.len() + 1));
        prop_assert_eq!(streamed(&mask, &[one, two]), text);
    }
}
