//! What the operating system says about this process and machine.

/// Highest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_resident_bytes() -> u64 {
    // Linux: "VmHWM:     12345 kB"
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| kilobytes * 1024)
}

/// Memory and swap space of this machine, or less where a control group sets a limit, in bytes; none where the system
/// does not tell.
pub fn total_memory_bytes() -> Option<u64> {
    // Linux: "MemTotal:       24571348 kB"
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |key: &str| {
        let rest = info.lines().find_map(|line| line.strip_prefix(key))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let machine = (kilobytes("MemTotal:")? + kilobytes("SwapTotal:").unwrap_or(0)) * 1024;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    Some(limit.and_then(|limit| limit.trim().parse::<u64>().ok()).map_or(machine, |limit| limit.min(machine)))
}

/// Cores this process may use, at least 1.
pub fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
