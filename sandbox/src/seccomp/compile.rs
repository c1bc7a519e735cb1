//! Compiles the policy into one filter.
//!
//! The call's number is looked up in a binary tree of ranges, not in a list: the kernel runs a filter for every call that
//! exists when it is installed, to learn which ones are always allowed, and translates it to machine code, so a list of
//! all calls costs most of a millisecond for each unit. The tests compare the result with filters that `seccompiler`
//! makes of the same policy.

use std::collections::BTreeMap;

use windlass_launcher::plan::Filter;

use super::{AF_UNIX, ALLOW, CONDITIONAL, Conditional, DENY, Op, REFUSE, SOCK_STREAM, TYPE_MASK};

/// AUDIT_ARCH_X86_64 of <linux/audit.h>.
const ARCH: u32 = 0xC000_003E;
/// Offsets of <linux/seccomp.h>'s `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// Instructions of classic BPF.
mod code {
    pub(super) const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    pub(super) const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    pub(super) const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
    pub(super) const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    pub(super) const JUMP_IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    pub(super) const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
}

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const KILLED: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const HANDED_ON: u32 = libc::SECCOMP_RET_USER_NOTIF;

/// What becomes of a call that is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// The supervisor is told, and ends the unit.
    HandedOn,
    /// The kernel ends the program.
    Killed,
}

/// What a call gets.
#[derive(Clone, Copy)]
enum Answer {
    /// Always this.
    Always(u32),
    /// It depends on the arguments.
    Depends(&'static Conditional),
    /// It makes sockets, and is told of.
    Told(Option<&'static Conditional>),
    /// It makes a pair of sockets, and is told of if they are not local ones for a stream.
    ToldUnlessStream,
}

impl Answer {
    /// Whether two neighbours can share a range.
    fn same(self, other: Self) -> bool {
        match (self, other) {
            (Self::Always(one), Self::Always(other)) => one == other,
            _ => false,
        }
    }
}

/// One instruction.
#[derive(Clone, Copy)]
struct Instruction {
    code: u32,
    if_true: u8,
    if_false: u8,
    value: u32,
}

/// An instruction without conditional jumps.
fn plain(code: u32, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}

/// The filter of the whole policy.
pub(crate) fn compile(denial: Denial) -> Filter {
    filter(tree(&ranges(denial, &[])))
}

/// The filter of the whole policy, which hands on what is denied, and the making of each socket that is allowed, but for local pairs
/// that are connected for good and reach nobody else. Any other local socket, one of a pair for datagrams too, could carry a descriptor
/// that holds the network to another unit.
pub(crate) fn compile_telling() -> Filter {
    filter(tree(&ranges(Denial::HandedOn, &[libc::SYS_socket, libc::SYS_socketpair])))
}

/// A filter for one call, beside that of the whole policy: everything else is allowed as far as it is concerned.
pub(crate) fn compile_alone(conditional: &Conditional) -> Filter {
    let mut program = vec![
        Instruction { code: code::JUMP_IF_EQUAL, if_true: 1, if_false: 0, value: number(conditional.call) },
        plain(code::RETURN, ALLOWED),
    ];
    program.extend(depends(conditional));
    filter(program)
}

/// A whole filter of one for the number of a call.
fn filter(for_number: Vec<Instruction>) -> Filter {
    let mut program = vec![
        plain(code::LOAD, ARCH_AT),
        Instruction { code: code::JUMP_IF_EQUAL, if_true: 1, if_false: 0, value: ARCH },
        plain(code::RETURN, KILLED),
        plain(code::LOAD, NUMBER_AT),
    ];
    program.extend(for_number);
    let pack = |instruction: &Instruction| {
        u64::from(instruction.code) << 48
            | u64::from(instruction.if_true) << 40
            | u64::from(instruction.if_false) << 32
            | u64::from(instruction.value)
    };
    Filter(program.iter().map(pack).collect())
}

/// The answers by ranges of numbers: each from its number up to the next one's. The last reaches to the end, and with it
/// everything that this version does not know.
fn ranges(denial: Denial, told: &[libc::c_long]) -> Vec<(u32, Answer)> {
    let mut calls: BTreeMap<u32, Answer> = BTreeMap::new();
    for (groups, answer) in [(ALLOW, ALLOWED), (REFUSE, REFUSED)] {
        for call in groups.iter().flat_map(|group| group.calls) {
            calls.insert(number(call.number), Answer::Always(answer));
        }
    }
    let denied = match denial {
        Denial::HandedOn => HANDED_ON,
        Denial::Killed => KILLED,
    };
    for call in DENY {
        calls.insert(number(call.call), Answer::Always(denied));
    }
    for conditional in CONDITIONAL {
        calls.insert(number(conditional.call), Answer::Depends(conditional));
    }
    for call in told {
        let conditional = CONDITIONAL.iter().find(|conditional| conditional.call == *call);
        let answer = match *call {
            libc::SYS_socketpair => Answer::ToldUnlessStream,
            _ => Answer::Told(conditional),
        };
        calls.insert(number(*call), answer);
    }
    let mut ranges: Vec<(u32, Answer)> = Vec::new();
    let mut push = |from: u32, answer: Answer| {
        if ranges.last().is_none_or(|(_, last)| !last.same(answer)) {
            ranges.push((from, answer));
        }
    };
    let mut next = 0;
    for (number, answer) in calls {
        if number > next {
            push(next, Answer::Always(UNKNOWN));
        }
        push(number, answer);
        next = number + 1;
    }
    push(next, Answer::Always(UNKNOWN));
    ranges
}

/// A call's number as the filter sees it.
fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("system calls are numbered from zero")
}

/// The instructions that find the range of the loaded number and answer.
fn tree(ranges: &[(u32, Answer)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![plain(code::RETURN, UNKNOWN)],
        [(_, Answer::Always(answer))] => vec![plain(code::RETURN, *answer)],
        [(_, Answer::Depends(conditional))] => depends(conditional),
        [(_, Answer::Told(conditional))] => {
            let mut program = conditional.map(refusals).unwrap_or_default();
            program.push(plain(code::RETURN, HANDED_ON));
            program
        }
        [(_, Answer::ToldUnlessStream)] => vec![
            plain(code::LOAD, ARGUMENTS_AT),
            Instruction { code: code::JUMP_IF_EQUAL, if_true: 0, if_false: 4, value: AF_UNIX },
            plain(code::LOAD, ARGUMENTS_AT + 8),
            plain(code::AND, TYPE_MASK),
            Instruction { code: code::JUMP_IF_EQUAL, if_true: 0, if_false: 1, value: SOCK_STREAM },
            plain(code::RETURN, ALLOWED),
            plain(code::RETURN, HANDED_ON),
        ],
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let (middle, low, high) = (high[0].0, tree(low), tree(high));
            let mut program = match u8::try_from(low.len()) {
                Ok(skip) => {
                    vec![Instruction {
                        code: code::JUMP_IF_AT_LEAST,
                        if_true: skip,
                        if_false: 0,
                        value: middle,
                    }]
                }
                // Too far for a conditional jump.
                Err(_) => vec![
                    Instruction { code: code::JUMP_IF_AT_LEAST, if_true: 0, if_false: 1, value: middle },
                    plain(code::JUMP, u32::try_from(low.len()).expect("far below the kernel's limit")),
                ],
            };
            program.extend(low);
            program.extend(high);
            program
        }
    }
}

/// The instructions that look at the arguments: each alternative refuses if all its tests hold.
fn depends(conditional: &Conditional) -> Vec<Instruction> {
    let mut program = refusals(conditional);
    program.push(plain(code::RETURN, ALLOWED));
    program
}

/// [`depends`], but for what is not refused.
fn refusals(conditional: &Conditional) -> Vec<Instruction> {
    let mut program = Vec::new();
    for alternative in (conditional.tests)() {
        // Backwards, because each test has to know how far it is to the end of the alternative.
        let mut block = vec![plain(code::RETURN, REFUSED)];
        for (argument, operation, value) in alternative.into_iter().rev() {
            let skip = u8::try_from(block.len()).expect("alternatives are short");
            let load = plain(code::LOAD, ARGUMENTS_AT + 8 * u32::from(argument));
            let jump = |if_true, if_false, value| Instruction {
                code: code::JUMP_IF_EQUAL,
                if_true,
                if_false,
                value,
            };
            let test = match operation {
                Op::Eq => vec![load, jump(0, skip, value)],
                Op::Ne => vec![load, jump(skip, 0, value)],
                Op::MaskedEq(mask) => vec![load, plain(code::AND, mask), jump(0, skip, value)],
            };
            block.splice(0..0, test);
        }
        program.extend(block);
    }
    program
}

#[cfg(test)]
mod tests {
    use super::super::Group;
    use super::*;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    /// Runs a filter as the kernel does.
    fn answer(program: &[(u16, u8, u8, u32)], arch: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let (code, if_true, if_false, value) = program[at];
            at += 1;
            match u32::from(code) {
                code::LOAD => {
                    accumulator = match value {
                        NUMBER_AT => number,
                        ARCH_AT => arch,
                        offset => match (offset - ARGUMENTS_AT) % 8 {
                            0 => arguments[usize::try_from((offset - ARGUMENTS_AT) / 8).unwrap()],
                            _ => 0,
                        },
                    };
                }
                code::AND => accumulator &= value,
                code::JUMP => at += usize::try_from(value).unwrap(),
                code::JUMP_IF_EQUAL => {
                    at += usize::from(if accumulator == value { if_true } else { if_false });
                }
                code::JUMP_IF_AT_LEAST => {
                    at += usize::from(if accumulator >= value { if_true } else { if_false });
                }
                code::RETURN => return value,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn unpack(filter: &Filter) -> Vec<(u16, u8, u8, u32)> {
        let fields = |word: &u64| {
            let bytes = word.to_be_bytes();
            (
                u16::from_be_bytes([bytes[0], bytes[1]]),
                bytes[2],
                bytes[3],
                u32::try_from(word & 0xffff_ffff).unwrap(),
            )
        };
        filter.0.iter().map(fields).collect()
    }

    /// The same policy as three filters by an independent compiler, of which the kernel takes the strictest answer.
    fn oracle() -> Vec<Vec<(u16, u8, u8, u32)>> {
        let everything = |groups: &[Group]| -> BTreeMap<i64, Vec<SeccompRule>> {
            groups.iter().flat_map(|group| group.calls).map(|call| (call.number, Vec::new())).collect()
        };
        let mut refused = everything(REFUSE);
        for conditional in CONDITIONAL {
            let rules = (conditional.tests)().into_iter().map(|tests| {
                let conditions = tests.into_iter().map(|(argument, operation, value)| {
                    let operation = match operation {
                        Op::Eq => SeccompCmpOp::Eq,
                        Op::Ne => SeccompCmpOp::Ne,
                        Op::MaskedEq(mask) => SeccompCmpOp::MaskedEq(u64::from(mask)),
                    };
                    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, u64::from(value))
                        .unwrap()
                });
                SeccompRule::new(conditions.collect()).unwrap()
            });
            refused.insert(conditional.call, rules.collect());
        }
        let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
        [
            (everything(ALLOW), errno(libc::ENOSYS), SeccompAction::Allow),
            (refused, SeccompAction::Allow, errno(libc::EPERM)),
            (
                DENY.iter().map(|call| (call.call, Vec::new())).collect(),
                SeccompAction::Allow,
                SeccompAction::KillProcess,
            ),
        ]
        .into_iter()
        .map(|(rules, otherwise, matched)| {
            let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64).unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            program.iter().map(|one| (one.code, one.jt, one.jf, one.k)).collect()
        })
        .collect()
    }

    /// The strictest of the three: kill, then the refusal, then what the allow-list says.
    fn strictest(answers: &[u32]) -> u32 {
        let [allow, refuse, kill] = answers else { panic!("three filters") };
        if *kill != ALLOWED {
            *kill
        } else if *refuse != ALLOWED {
            *refuse
        } else {
            *allow
        }
    }

    #[test]
    fn it_answers_as_an_independent_compiler_does_for_every_call_and_telling_arguments() {
        let filter = unpack(&compile(Denial::Killed));
        let oracle = oracle();
        let mut values: Vec<u32> =
            vec![0, 1, 2, 3, 9, 10, 16, 17, 40, 0x8_0002, 0x8_0003, 0xffff_ffff, 0x4_0000];
        values.extend([0x5412, 0x541c, 0x5413, 17 | 0x1000_0000, 17 | 0x2_0000, 0x3d_0f00, 0x0200_0000]);
        let numbers = (0..600).chain([u32::MAX, 0x4000_0000, 0x4000_0000 + 39, 999]);
        for number in numbers {
            for one in &values {
                for other in &values {
                    for third in [0, 1, 9] {
                        let arguments = [*one, *other, third, 0, 0, 0];
                        let answers: Vec<u32> =
                            oracle.iter().map(|program| answer(program, ARCH, number, arguments)).collect();
                        let ours = answer(&filter, ARCH, number, arguments);
                        assert_eq!(ours, strictest(&answers), "call {number} with {arguments:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn it_answers_as_an_independent_compiler_does_for_modes_and_the_flags_that_make_files() {
        let filter = unpack(&compile(Denial::Killed));
        let oracle = oracle();
        let values =
            [0, 0o40, 0o100, 0o755, 0o2755, 0o4755, 0o6100, 0o2000_0000, 0o2020_0000, 0o10_0644, 0o10_6644];
        for conditional in CONDITIONAL {
            let number = number(conditional.call);
            let pairs = || values.iter().flat_map(|one| values.map(|two| (*one, two)));
            for arguments in pairs().flat_map(|(one, two)| values.map(|three| [0, one, two, three, 0, 0])) {
                let answers: Vec<u32> =
                    oracle.iter().map(|program| answer(program, ARCH, number, arguments)).collect();
                let ours = answer(&filter, ARCH, number, arguments);
                assert_eq!(ours, strictest(&answers), "call {number} with {arguments:?}");
            }
        }
        let openat = number(libc::SYS_openat);
        let made = |flags, mode| answer(&filter, ARCH, openat, [0, 0, flags, mode, 0, 0]);
        assert_eq!(
            [made(0o101, 0o755), made(0o101, 0o4755), made(0o101, 0o2755)],
            [ALLOWED, REFUSED, REFUSED]
        );
        assert_eq!(
            made(0, 0o4755),
            ALLOWED,
            "without a flag that makes a file the mode is whatever was there"
        );
        assert_eq!(answer(&filter, ARCH, number(libc::SYS_openat2), [0; 6]), UNKNOWN);
    }

    #[test]
    fn what_is_handed_on_is_what_would_be_killed_and_nothing_else() {
        let (told, killed) = (unpack(&compile(Denial::HandedOn)), unpack(&compile(Denial::Killed)));
        let mut handed_on = Vec::new();
        for call in (0..600).chain([u32::MAX, 0x4000_0000 + 169]) {
            let answers = [&told, &killed].map(|program| answer(program, ARCH, call, [0; 6]));
            match answers {
                [HANDED_ON, KILLED] => handed_on.push(call),
                [one, other] => assert_eq!(one, other, "call {call}"),
            }
        }
        let mut denied: Vec<u32> = super::super::denied().iter().map(|call| call.number).collect();
        denied.sort_unstable();
        assert_eq!(handed_on, denied);
        assert_eq!(answer(&told, 0x4000_0003, 169, [0; 6]), KILLED, "another architecture");
    }

    #[test]
    fn sockets_are_told_of_but_for_local_pairs_of_streams_and_all_else_is_answered_as_ever() {
        let (telling, silent) = (unpack(&compile_telling()), unpack(&compile(Denial::HandedOn)));
        for call in (0..600).chain([u32::MAX, 0x4000_0000 + 41]) {
            for family in (0..50).chain([0x8000_0001, u32::MAX]) {
                for (kind, protocol) in [(1, 0), (2, 0), (3, 0), (3, 1), (10, 0), (0x8_0001, 0), (1, 9)] {
                    let arguments = [family, kind, protocol, 0, 0, 0];
                    let [told, untold] =
                        [&telling, &silent].map(|filter| answer(filter, ARCH, call, arguments));
                    let is = |one| call == number(one);
                    let is_stream = family == AF_UNIX && kind & 0xf == 1;
                    let is_told = is(libc::SYS_socket) || is(libc::SYS_socketpair) && !is_stream;
                    let expected = if is_told && untold == ALLOWED { HANDED_ON } else { untold };
                    assert_eq!(told, expected, "call {call} with {arguments:?}");
                }
            }
        }
    }

    #[test]
    fn another_architecture_is_killed_and_the_filter_is_small() {
        let filter = unpack(&compile(Denial::HandedOn));
        assert_eq!(answer(&filter, 0x4000_0003, 1, [0; 6]), KILLED);
        assert!(filter.len() < 450, "{}", filter.len());
    }
}
