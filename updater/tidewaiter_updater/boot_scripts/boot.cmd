# tidewaiter: which slot is booted, from U-Boot's own redundant environment. To be compiled into the default environment as
# `tidewaiter_boot` with CONFIG_BOOTCOMMAND="run tidewaiter_boot" (a boot.scr on FAT would be an unsigned way in); hush syntax.
#
# The board's default environment sets:
#   tw_dev      interface and device of the disk, such as `mmc 0`
#   tw_part_a, tw_part_b   partition numbers of the slots, in hex
#   tw_load     loads the kernel from `${tw_dev}:${tw_part}`, checks its signature where there is one; false if it cannot
#   tw_go       starts what tw_load loaded; comes back only if that fails
#   tw_watchdog optional: arms the hardware watchdog (such as `wdt start 60000`); run before a trial
#   tw_args     optional: more kernel arguments
#
# The contract (update-engine.md section 8):
# 1 U-Boot picks the valid newest copy (CONFIG_ENV_REDUNDANT; its crc32 and flag byte); the default environment has no tw_committed;
# 2 in a trial with tries left one try is spent on storage (saveenv writes the older copy) before anything of the trial is
#   touched; what fails to load after that is a reset;
# 3 else the committed slot, and if it does not load the other one, if it is ok;
# 4 a trial is never cleared here; if the try cannot be spent, the committed slot boots;
# 5 without a record: slot A, then slot B, whichever loads.
# setexpr counts in hex, which is why there are at most 9 tries.

setenv tw_start 'if test "${tw_slot}" = A; then setenv tw_part "${tw_part_a}"; else setenv tw_part "${tw_part_b}"; fi; if run tw_load; then setenv bootargs "root=PARTLABEL=rootfs.${tw_slot} tidewaiter.slot=${tw_slot} ro rootwait panic=5 ${tw_args}"; echo "tidewaiter: slot ${tw_slot} (committed ${tw_committed}, trial ${tw_trial}, left ${tw_left})"; run tw_go; fi; echo "tidewaiter: slot ${tw_slot} does not load"'

setenv tw_sound 0
if test "${tw_committed}" = A || test "${tw_committed}" = B; then
  if test "${tw_trial}" = A || test "${tw_trial}" = B || test "${tw_trial}" = -; then
    for tw_digit in 0 1 2 3 4 5 6 7 8 9; do
      if test "${tw_left}" = "${tw_digit}"; then setenv tw_sound 1; fi
    done
  fi
fi

if test "${tw_sound}" = 1; then
  if test "${tw_trial}" != - && test "${tw_left}" != 0; then
    setexpr tw_left "${tw_left}" - 1
    if saveenv; then
      if test -n "${tw_watchdog}"; then run tw_watchdog; fi
      setenv tw_slot "${tw_trial}"
      run tw_start
      reset
    fi
    echo "tidewaiter: the try cannot be counted, so there is none"
  fi
  setenv tw_slot "${tw_committed}"
  run tw_start
  if test "${tw_committed}" = A; then
    setenv tw_slot B
    setenv tw_other_ok "${tw_ok_b}"
  else
    setenv tw_slot A
    setenv tw_other_ok "${tw_ok_a}"
  fi
  if test "${tw_other_ok}" = 1; then run tw_start; fi
else
  echo "tidewaiter: no valid environment"
  setenv tw_slot A
  run tw_start
  setenv tw_slot B
  run tw_start
fi
echo "tidewaiter: no slot loads; next try in 30 s"
sleep 30
reset
