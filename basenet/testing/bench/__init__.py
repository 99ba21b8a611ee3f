"""The benchmark behind ``make bench``: one machine, one run, basenet beside litestream.

Theory of operation
===================

A *load* is an ordinary application (`writer`: the standard library's sqlite3, no basenet import)
in a process of its own. A *contender* is what runs beside it: nothing, basenet, or litestream. A
*row* (`rows`) runs one load against the contenders and returns *lines*, each a question with every
contender's answer, the aim, and whether it was met.

Absolute numbers of a shared machine mean little, so whatever is compared is taken in one run:
contenders take turns, round by round, and a ratio is the median of the rounds' own ratios. Which
round was lapped, what the machine was and how loaded, is printed with the table.

=============  ====================================================================
`writer`       the application, a program of its own
`processes`    child processes: started, measured through /proc, ended by pid
`contenders`   what may run beside the application, and how it is started
`sidecars`     basenet and litestream as one interface
`loads`        running the writer; its report as a value
`clusters`     nodes on loopback, what they take, who waits for a commit
`restoring`    running a restore command; what it cost; is what came back the source
`report`       lines, their table and their JSON
`machine`      what this was measured on
`others`       how much of it was busy with something else
`context`      what each row is given: where to work, how much to do
`rows`         one file per question
`main`         the command line
=============  ====================================================================
"""
