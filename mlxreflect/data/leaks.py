"""Tells where a text gives away that its writer was helped.

A rewrite is learned from as if the policy had thought of it alone. So it may not speak of what only
a helped writer has seen: feedback, an attempt before this one, an answer that was known. None of
these words leaks by itself ("feedback loop", "attempt to factor", "expected value"). What is
innocent beside its neighbours is taken out first; a leak is then a thing that was given, together
with a word that refers to it ("the critic says", "according to"). What no rule foresaw is weighed
(`leak_wordings`).
"""

import re

from mlxreflect.data.leak_wordings import MARKUP, SLIPS, heaviest
from mlxreflect.prompts.roles import ROLES

MIN_WORKING = 2  # characters of thought; less only restates the answer
LONGEST_PHRASE = 60  # characters of it in a reason


def leak(text: str, spans: dict[str, list[int]], style: str, question: str = "") -> str:
    """Returns why a text gives away that it was helped, or has no working; "" when it does not.

    question: the problem as it is shown, of which a text may speak. Linear in the text's length.
    """
    if phrase := giveaway(text, question):
        return f"it says {phrase!r}"
    start, end = spans.get("think", [0, 0])
    if style != "direct" and len(text[start:end].strip()) < MIN_WORKING:
        return "it only restates the answer"
    return ""


def giveaway(text: str, question: str = "") -> str:
    """Returns the first words by which a text gives away that it was helped, or ""."""
    return (by_rules(text, question) or heaviest(text, question))[:LONGEST_PHRASE].strip()


def by_rules(text: str, question: str = "") -> str:
    """Returns the first words that a rule finds, or ""."""
    lowered = WORD.sub(lambda word: SLIPS.get(word[0], word[0]), text.lower().translate(MARKUP))
    line = FINE.sub("~", " ".join(lowered.split()))  # a phrase may go on in the next line
    asked = {name.rstrip("s") for name in NAMED.findall(question.lower())}
    for rule, said in ((HEADING, lowered), (LEAK, line)):
        for found in rule.finditer(said):
            phrase: str = found.group().strip()
            if not any(name.rstrip("s") in asked for name in NAMED.findall(phrase)):
                return phrase
    return ""


# ---- words ---------------------------------------------------------------------------------------
# Pieces of the rules, in small letters. A space stands for the one space between two words. Gaps
# are bounded, and no piece begins with one: that keeps the search linear.


def one_of(words: str, *phrases: str) -> str:
    return f"(?:{'|'.join((*words.split(), *phrases))})"


def gap(most: int) -> str:
    """At most so many words of the same clause."""
    return rf"(?: [^ .;:!?~]+){{0,{most}}}?"


THE = one_of("the this that these those your my our an? any some all both")
MINE = one_of("the this that these those my your our an?")
OTHERS = r"(?<!\bher )(?<!\bhis )(?<!\btheir )"  # of the people in a story
GUIDE = "(?:feedbacks?|critiques?|hints?)"
REMARK = one_of(
    """criticisms? reviews? comments? remarks? corrections? suggestions? guidance advice
    recommendations?    pointers? annotations? evaluations? assessments? reflections?""",
    GUIDE,
)
CHECKER = "(?:critic|reviewer|grader|evaluator|checker|verifier|assessor|marker)s?"
HELP = f"(?:{REMARK}|{CHECKER})"
PERSON = one_of("teachers? tutors? instructors? professors? mentors? supervisors? examiners?")
WRITER = one_of("student learner pupil user assistant model solver writer author")
PLACE = one_of("problem question exercise riddle puzzle story text statement table passage figure")
IN_PROBLEM = rf"(?:\w+ )?(?:in|by|of|from|with) (?:the|this|each) (?:\w+ )?{PLACE}"
SAYS = one_of(
    r"""says? said saying states? stated notes? noted suggest(?:s|ed)? thinks?
    mention(?:s|ed)? indicate[sd]? highlight(?:s|ed)? identif(?:y|ies|ied) flag(?:s|ged)? thought
    claim(?:s|ed)? tells? told explain(?:s|ed)? shows? showed asks? asked wants? wanted advise[sd]?
    recommend(?:s|ed)? warn(?:s|ed)? caught finds? found reveal(?:s|ed)? confirm(?:s|ed)? hinted
    complain(?:s|ed)? describe[sd]? refers? remind(?:s|ed)? helps? helped agree[sd]? correctly
    disagree[sd]? reject(?:s|ed)? accept(?:s|ed)? insist(?:s|ed)? object(?:s|ed)? spot(?:s|ted)
    observe[sd]? stress(?:es|ed)? locate[sd]? expects? expected rightly right correct notice[sd]?
    demand(?:s|ed)? require[sd]? urge[sd]? call(?:s|ed) question(?:s|ed) consider(?:s|ed) makes
    justified""",
    r"(?:marked|corrected|counted|means?|meant|report(?:s|ed)?)(?!.\d)",
    r"point(?:s|ed)? (?:out|to)",
)
PER = one_of(
    r"""per following follow given considering address\w* incorporat\w+ using use apply applying
    heed heeding tak(?:e|en|ing) in by from with unlike after received reading on adopt\w*
    implement\w* understand""",
    "according to", "based on", "in (?:the )?light of", "in response to", "in (?:line|view) of",
    "in line with", "thanks to", "responding to", "(?:going|judging|prompted) by", "agree with",
)  # fmt: skip
WRONG = one_of(
    """wrong incorrect(?:ly)? mistakes? mistaken(?:ly)? errors? flaw(?:s|ed)? failed forgot(?:ten)?
    missed misread ignored overlooked invalid rejected omitted neglected confused slip lacked""",
    "not (?:correct|right)", "off by", "mixed up", "went (?:wrong|astray)", "(?:left|leaves) out",
)  # fmt: skip
WORKS = one_of(
    r"""comput\w+ calculat\w+ add(?:s|ed) subtract(?:s|ed) multipli\w+ divid\w+ us(?:es|ed)
    assum\w+ starts? started beg[aiu]ns? stop(?:s|ped) appl\w+ conclud\w+ reach(?:es|ed) end(?:s|ed)
    treat(?:s|ed) doubl\w+ halv\w+ gets? got differ(?:s|ed)? arriv\w+ mis\w+ counted skip(?:s|ped)
    handle[sd]? goes takes overlook\w* neglect\w* ignore[sd]? omit\w* lack(?:s|ed) fail(?:s|ed)
    forg[eo]ts? attribut\w+ (?:in)?correctly wrongly"""
)
BAD = "(?:failed|flawed|faulty|erroneous)"
BEFORE = f"(?:previous|prior|earlier|original|preceding|submitted|proposed|{BAD})"
EARLIER = f"(?:{BEFORE}|past|old|first|second|initial|last|wrong|incorrect)"
DRAFT = one_of("attempt try draft response reasoning working explanation submission")
TEXT = one_of("answer solution work version", DRAFT)
AGAIN = one_of("revised rewritten corrected amended reworked improved updated fixed")
HELD = one_of("correct right actual true real final known stated given target expected")
GIVEN = one_of("given provided supplied shown")
KNOWN = one_of(
    f"{GIVEN} known(?!.as) revealed told marked rejected",
    "(?:stated|given) as",
    r"(?:supposed|said|expected|stated) to (?:be|equal)(?! (?:an?|in|at|between|less|more|even|odd|"
    r"above|below|whole|positive|negative|close)\b)",
)
VALUE = (
    r"(?:is|was|should be|must be|has to be|equals|to be) \W{0,3}(?:\d|[b-e]\b|option|frac|sqrt)"
)
I_WAS = (
    r"\b(?:i|we)(?:'m|'re|'ve been|'d been| am| are| was| were| have been| had been)"
    r"(?: already| also| just)?"
)
PARTS = "|".join(sorted({part.strip("<>").lower() for one in ROLES.values() for part in one.shows}))

# ---- what is innocent ----------------------------------------------------------------------------
# One rule a line, here and below. What is indented further belongs to the line before.

INNOCENT = rf"""
    (?:the |this |an? )?(?:\w+ )?{HELP} {IN_PROBLEM}\b
    (?:positive|negative|mechanical|sensory|haptic|visual|thermal|customers?|consumers?|clients?|
        audience) feedback\b(?! (?:says|said))
    feedback (?:loops?|control\w*|systems?|signals?|mechanisms?|resistors?|circuits?|paths?|gains?|
        groups?|forms?|scores?|surveys?|rate\w*|inhibition|between|from (?!the (?:critic|review|
        grad|check|\w+ expert))|(?:on|about) (?:\d|an? |his|her|their|the (?:product|service|food|
        essay|course|event|film)))
    an? (?:critic|reviewer) (?:might|may|could)\b
    (?:\d+ ?%|\d+|half|most|part) of (?:the|his|her) {HELP}\b
    (?:the |both )?(?:{CHECKER}|{PERSON}) (?:(?:on|at|in|from|for|of) (?:the|a)\b|
        (?:\w+ ){{0,2}}\d+ (?:of|[a-z]{{2,}}s)\b|(?:gave|gives|awarded|rate[sd]?|reads?|watch\w*|
        earns?|works?|reviews?|reviewed|gets|saw|charges|liked)\b)
    (?:reviews?|evaluations?|critiques?) (?:of|at) (?!the (?:attempt|solution|answer)|my)\S+
    reflections? (?:of|in|across|about|over|coefficient)\b
    correction (?:factor|term)s?
    (?:comments?|hints?|reviews?) (?:section|word|session|button|column|page|card)s?\b
    (?:hints?|comments?|critics?|reviews?) of\b
    markers? (?:cost|pen)\w*
    answers? (?:choice|option|set|sheet|format|type)s?\b
    answer key has \d
    (?:salt|saline|acid|sugar|buffer|alcohol|stock|standard|%) (?:\w+ )?solutions?\b
    solutions? (?:of (?:\d+ ?%|[a-z])|contain\w* (?!an? (?:\w+ )?(?:error|mistake|slip))|
        in (?:bottles|(?:the|a) (?:bottle|beaker|tank|flask|jar|cup))|(?:is|was|ha[sd]|with|
        provided)(?: has)? (?:an? (?:ph|conc|vol|dens|mass|temp)\w*|\d)|set\b|to the (?:equation|
        system)|was (?:heated|mixed|diluted|poured|stirred))
    (?:critics|reviewers|graders)' (?:average|scores?|ratings?)
    that critics\b
    attempts? (?:to|at|rate)\b
    was a failed attempt
    probab\w+ (?:\w+ ){{1,3}}attempt \w+
    response (?:times?|rates?)\b
    (?:mentioned|suggested|pointed out|noted|recommended) (?:above|earlier|before)\b
    as (?:suggested|recommended|advised|hinted|pointed out) (?:in|by) (?!(?:the )?(?:feed|crit|
        review|comm|hint|note|check|grade|eval)|my|your)\S+(?: \w+)?
    \d+th graders?
    right-handed
    (?:right|correct) with prob
"""

# ---- rules ---------------------------------------------------------------------------------------

CRITICS = rf"""
    # the feedback; the critic with a verb of telling; according to the review
    (?:the|this|your|my|our|{PERSON}'s) (?:\w+ )?(?:feedback|critique)\b
    feedback (?:said|says|saying|that|is that|was that|on (?:my|step|line|the \w+ (?:try|attempt))|
        addressed|not)\b
    {THE} (?:\w+ )?{HELP}\b{gap(4)} {SAYS}\b
    as (?:the|my) {CHECKER} \w+
    what (?:the|my) {HELP} \w
    (?<![a-z] )(?:(?:so|ok|okay|and|but|as|since|because|hmm) )?{HELP}(?: \d)? {SAYS}\b
    (?:the|this|that|my|our) (?:automat\w+ )?{CHECKER}\b(?!'s (?:average|rating|desk|pay|sal|score|
        column)|s' | game)
    (?:an? )?{CHECKER}(?:'s (?!(?:average|rating|desk|pay|salary)\b)| (?:is|was|were|are|did|does|
        didn't|would|won't|should) (?:not )?(?:like|happy|satisfied|right|correct|clear|unhappy|
        say|agree|accept|convinced)\b)
    {PER} {THE} (?:\w+ )?{HELP}\b(?! of)
    (?:per|following|according to|based on|from|after|given|addressing|incorporating|considering|
        response to|light of) (?:[a-z]+ )?{GUIDE}\b
    (?:{THE} )?{REMARK} (?:that )?(?:{GIVEN}|received|above|(?:i|we)(?:'ve| have| had)? (?:was|
        were|been|got|have|had|received)\b)
    (?:{REMARK}|note) (?:on|about|for|regarding|concerning|is that|was that) (?:i|my|step|
        line(?! \d of)|the \w+ (?:step|line)|the (?:answer|solution))\b
    (?<!gives )(?<!has )(?<!gave )\b(?:(?:the|your) (?:hints?|advice|suggestions?|recommendations?|
        remarks?|criticisms?)|(?:this|that) (?:hint|remark|advice|suggestion))\b(?! (?:box|of|from|
        by a))
    {GUIDE} (?:is|are|was|were|has been|had been) (?:given|provided)\b(?! by)
    i(?:'ve| have| had)? (?:was given|been given|received|got|have|had) (?:{THE} )?(?:\w+ )?{REMARK}
    there(?:'s| is| was) (?:an? |some |no )?(?:\w+ )?(?:{GUIDE}|attempt)\b
    no {GUIDE}\b
    # a person, about the working
    (?:my|the|our|a) {PERSON}(?:'s)?(?: \w+ly)? (?:{REMARK}|notes?)\b
    (?:my|the|our|a) {PERSON}{gap(2)} {SAYS} (?:that )?(?:my|i|step|line|the (?:answer|step|
        working|solution|sign|calculation|attempt))\b
    # as pointed out
    as (?:(?:was|has been|had been|i was|i've been|we were) )?(?:pointed out|suggested|hinted|
        advised|recommended|told|instructed by|shown to me)\b(?! (?:the|in the) (?:problem|
        question))
    as provided\b(?! (?:in|by|with) the)
    as i was \w+
    it(?:'s| was| has) (?:been )?(?:pointed out|remarked|flagged|brought to my|suggested (?:to|
        that (?:i|we|my|step|line)))
    (?:someone|somebody|who|they) point(?:s|ed)? out
    (?:mistake|error|issue|flaw|slip|problem|point)s?{gap(8)} (?:pointed out|flagged|identified|
        highlighted|raised|noted|brought up)\b
    (?:mistake|error|issue|flaw)s? (?:(?:that|which|was|were|is|are) )*mentioned
    (?:(?:my|our) (?:\w+ ){{1,2}}?|(?:{TEXT}|step|line|part|point)s? (?:(?:that|which) )?)(?:was|
        were|got|has been|have been|is marked) (?:\w+ly )?(?:critici[sz]ed|flagged|marked|graded|
        judged|evaluated as|deemed|questioned|rejected|refused|not accepted|called out|rated as|
        scored as)\b(?! (?:by the line))
    according to the notes
    (?:given|provided) notes
    (?:the|my) notes? (?:i|we) (?:was|were)
    (?:suggested|recommended|proposed) (?:correction|fix|change|improvement|revision)s?\b
    (?:fix|change|correction)s? (?:suggested|recommended|proposed)
    as requested(?:\.| by|, i\b)
    (?:evaluation|grading) result\b
    automat\w+ check\b
    (?:provided|supplied) (?:passage|text|excerpt|context|document)s?\b
    (?!numbers|letters|words?\b|data|values|equation|cards|digits|info|facts|
        list)\w+ (?:that )?(?:i|we) (?:was|were|have been|'ve been) (?:given|shown|told|handed)\b
    the texts (?:above|given|provided)
"""
TOLD = rf"""
    {I_WAS} (?:told|informed|advised|warned|notified|reminded|corrected) (?:that )?(?:my|step|
        the (?:{HELD} )?(?:{TEXT}|\w+ (?:step|line)))\b
    i(?:'ve| have| had| was|'d) (?:been )?(?:told|informed|warned|notified) (?:that|there|not|off|
        to (?:fix|rewrite|correct|change|check))\b
    i(?:'ve been| have been| was| had been) (?:just |also |now |already )?(?:advised|informed|
        reminded|warned|notified|corrected|critici[sz]ed)\b
    i was given (?:the|a|this) (?:tip|clue)
    (?:told|advised|reminded|warned|informed|corrected) me\b
    just as i was
    like i was told
    as (?:i|we) (?:was|were|have been) (?:told|shown|given)
    (?:they|you|someone|somebody|it was) (?:'ve |have |had |has )?(?:told|gave|showed|informed|
        reminded|explained) (?:to )?(?:me|us)\b
    (?:he|she|{PERSON}|{CHECKER}) (?:told|informed) me
    {I_WAS} (?:given|shown|handed|provided with|supplied with) (?:the|an?|some|two|several|
        with){gap(2)} (?:answers?|attempts?|{REMARK}|solutions?|draft|text|result)\b(?! in)
    {I_WAS} (?:(?:asked|told|instructed|supposed|meant|not) )?(?:not )?to (?:rewrite|revise|hide|
        pretend|mention|reveal|act|correct|fix|improve)\b
    (?:(?:i|we|it|result|outcome)(?:'m|'re|'s| am| are| is| was) )(?:supposed|expected) to (?:get|
        be|obtain|reach|equal|arrive at) \W?\d
    (?<!if )\byou (?:have |had |just |correctly |rightly )?(?:pointed (?:out|to)|mentioned|noted|
        suggested|explained|flagged|identified|hinted|indicated)\b
    you said\b
    as you (?:\w+ly )?(?:say|state|note|point|suggest|write|wrote|explain)
    your point\b
    what you mean
    (?:good|fair|great|valid|excellent) (?:point|catch)\b(?! of)
    point taken
    (?<![a-z] )thanks,
    (?:answer|solution|attempt|hint|feedback|working) (?:that )?you (?:gave|provided|showed)\b
    you(?:'re| are| were) (?:absolutely |quite |completely |totally )?(?:right|correct)\b(?! to)
    your (?:\w+ )?(?:feedback|critique|hints?|comments?|suggestions?|corrections?|notes?|review|
        remarks?|observation|guidance|advice|explanation|attempt)\b
    your (?:answer|solution|working) (?:of|was|is (?:right|wrong|correct|incorrect))\b
    thanks for
    thank you for (?:the|your|pointing|catching|\w+ing that)
    thanks to your
    thx\b
    i apologi[sz]e
    apologies\b
    sorry (?:for|about)
    i appreciate (?:the|your)
    # what was asked for
    the user\b{gap(5)} (?:attempts?|{REMARK}|expected|rewrit\w+|rewrite|revised?|corrected|
        previous|incorrect|wrong|provided)\b
    the (?:prompt|instructions?|system message|input)\b{gap(5)} (?:attempts?|{GUIDE}|expected|
        (?:gives|contains|has|states|includes|says|provides|reveals)(?: that)? the (?:\w+ )?answer)
    (?:the|my) task (?:is|asks)\b{gap(4)} (?:rewrite|revise|correct|improve|fix|again)\b
    (?:without|not|never|avoid|no|shouldn't|can't|mustn't|cannot|don't|dont) (?:to )?(?:reveal|
        mention|hint|acknowledg|disclos|say|admit|refer|show)\w*{gap(6)} (?:answer|feedback|
        attempt|hint|critique|given|provided|told)\b
    pretend (?:that )?(?:i|not|to)\b
    (?:as if|as though|act like) (?:i|we) (?:found|had|came|did|do|thought|never)
    hide (?:that|the fact)
    looks? (?:like|as if|as though) i (?!am|need|have)
"""
ANSWERS = rf"""
    (?:expected|reference|gold(?:en)?|ground.truth|provided|supplied|given|intended|official|
        target|known|stated|model|sample) (?:final |correct |numerical |
        right )?answers?\b(?! is an? number)
    the expected one\b
    (?:what|than|that) (?:was|were) expected\b
    (?:reference|gold(?:en)?|ground.truth|official|target|model|provided|supplied|given|expected|
        sample|worked) (?:solution|working|derivation)s?\b
    (?:expected|provided|supplied) (?:results?|outputs?|labels?|conclusion|expression|string|word|
        letters?)\b(?! of (?!\d))(?! in)
    the known result (?:is|of)
    the expected \W{{0,2}}\d[\d.,/]*(?! ?[a-z%])
    (?<![a-z] )expected is \W?\d
    ground.truth\b
    (?:answer|solution) key\b
    gold label\b
    mark(?:ing)? scheme\b
    textbook(?:'s)? (?:answer|solution)
    solutions? (?:manual|sheet)\b
    answers? (?:at|in) the (?:back|end) of
    answers?(?: (?!to)[^ .;:!?~]+)?,? (?:(?:that|which|is|was|has|been|already|
        as) ){{0,4}}{KNOWN}\b(?! (?:by|in(?! the (?:prompt|feedback))|the|between|choice|option|
        negative|positive|a\b|to the|exactly|with))
    (?:answer|solution|result) (?:\({GIVEN}\)|is (?:already )?known\b(?! (?:as|to)))
    answer (?:that|which) (?:is|was) expected
    answer (?:that )?(?:they|you) (?:expect|want)
    solution,? (?:that |which |as )?(?:(?:was|were|has been|i was) )?{GIVEN}\b(?! in| by)
    (?:answer|solution) (?:that )?(?:i|we) (?:was|were|have been) (?:given|told|shown)
    (?:answer|result) (?:that )?(?:i am|i'm|we are|we're) supposed to
    the (?:answer|solution) (?:says|states|mentions|notes|claims|tells me)\b
    (?:given|knowing|know|told|shown|says?|already have)(?: that)? the (?:correct |right |final |
        actual )?answer\b(?! (?:to|for|must|choice|option|in|is (?:an?|between|in|less|more|not)))
    correct answer being\b
    the reference (?:says|states|gives|shows|uses|is (?:right|correct|\d))\b(?! nothing)
    with the (?:{HELD} )?answer (?:in|at) (?:hand|mind)
    reverse.engineer\w*
    i(?:'ve| have| had)? (?:already )?(?:seen|saw|peeked at|looked up|have|
        was shown) the (?:{HELD} )?(?:answer|solution)\b(?! (?:to|for|of))
    (?:answer|output|result) (?:is|was) given as
    (?:was|were) given as \W?\d
    according to the (?:answer )?key\b
    according to the (?:{HELD} )?(?:answer|solution)\b(?! (?:to|of))
    expected \d+,? got\b
    answer is (?:apparently|supposedly)\b
    answer should (?:be|have been) [^,]{{1,20}},? (?:but|yet|while|however),? (?:i|we|my|the)\b
    (?:match(?:es|ing|ed)?|agree[sd]? with|agreement with|consistent with|in line with|equal to|
        against|differ(?:s|ent)? from|compar(?:e|ed|ing) (?:\w+ )?(?:with|to)|confirm(?:s|ed)?|
        contradicts?|aligns? with|corresponds? to) (?:the|this|that) (?:{HELD} (?:answer|solution|
        result)\b|reference(?! \w))
    (?:according to|as in) the reference(?! \w)
    (?:see(?:ing|n)?|saw|look(?:ing|ed)? at|read(?:ing)?|
        work(?:ing)? back(?:ward)?s? from) the {HELD} (?:answer|solution)\b
    (?:since|because|as|know(?:ing|n)?|given|told|shown|
        informed)(?: that)? the (?:{HELD} )?answer {VALUE}
    (?:told|shown|informed)(?: that)? the (?:{HELD} )?result (?:is|was|should|must)
    (?:since|because|as) \S{{1,20}} is the {HELD} answer
"""
TEXTS_BEFORE = rf"""
    (?<!none of )\bthe attempts?\b(?! (?:fails(?! to)|failed|succeed|cost|rate|gives|works|is made|
        is success))
    the attempt failed because
    the attempted (?:answer|solution)
    attempts? (?:above|{GIVEN})\b
    the (?:response|answer|solution|draft) above
    the above (?:{DRAFT}|answer|solution)\b
    this attempt \w+ed\b
    {OTHERS}\b(?:{BEFORE}|initial|given|provided) (?:{DRAFT}|solver)\b(?! of the|s)
    my (?:attempt|submission|draft|response) (?:was|has|had|got|left|forgot|\w+ed)\b
    the draft (?:has|had|says|is wrong)
    the last attempt (?!was the|is the|took)\w+\b
    {MINE} (?:{BEFORE}|initial) solutions?\b(?! (?:set|for|space))
    my (?:first|old) answer\b
    {MINE} {BEFORE} answer\b(?! (?:for|to|choice|sheet|key))
    answer i gave\b
    (?:an|the|a|this) (?:incorrect|wrong|{BAD}) (?:attempt|draft|working|reasoning|solution|
        explanation)\b
    in my (?:{BEFORE}|last|first|initial) {TEXT}\b
    in (?:its|the) {EARLIER} (?:answer|response|solution|reasoning|draft),? (?:i|it|we|the)\b
    in its {EARLIER} {TEXT}
    {OTHERS}\b{EARLIER} (?:attempt|answer|solution|response)(?: \w+ly)? (?:{SAYS}|{WORKS})\b
    {MINE} {EARLIER} {TEXT},?{gap(6)} {WRONG}\b
    the (?:wrong|incorrect) (?:answer|result) (?:of \d+|came|comes|was|stems|results)\b
    (?:unlike|contrary to|as opposed to|instead of|as in|
        than)(?: \S+){{0,3}}? {MINE} {BEFORE} {TEXT}\b
    (?:both|one of the|all(?: of)?(?: the)?|merg\w+ the|combin\w+ the|two|several|
        most of the) (?:attempts|reflections|drafts)\b{gap(3)} (?:{SAYS}|{WORKS}|we|i)\b
    attempt [ab] (?:{SAYS}|{WORKS}|is|has)\b
    attempts?{gap(1)} (?:that|which) (?:got|gets|had|has|end(?:s|ed)|reach(?:es|ed))\b
    (?:last time|previously|before this|the first time),? i (?:answered|forgot|got|wrote|gave|used|
        made|concluded|had){gap(8)} {WRONG}
    previously (?:i )?(?:answered|got it wrong)
    i previously answered
    mistake last time
    got (?:it|this|that) wrong (?:before|earlier)
    (?:what|answer|response|solution) i (?:gave|wrote|submitted) (?:before|earlier|previously)
    the (?:previous|earlier|original) (?:mistake|error|slip)\b
    (?:first|previous|earlier|original|last) (?:solver|writer|author|answerer)\b
    {WRITER}'s (?:\w+ )?(?:attempt|solution|work(?:ing)?\b|calculation|logic|reasoning|response|
        mistake|error|(?:final|{EARLIER}) answer|answer(?: \w+){{1,4}}? (?:{WRONG}|{WORKS})\b)
    (?:person|one|whoever) (?:who )?(?:wrote|made|did) (?:this|the)\b
    {WRITER} (?:\w+ly )?(?:made (?:an?|the) (?:\w+ )?(?:mistake|error)|forgot to|should have|
        has written|assumed|didn't|did not|failed to|\w+ed the wrong|mis\w+ed|misread|incorrectly|
        mistakenly|wrongly|correctly (?:comput|calcul|identif|determin|found|set|start|add|mult))
    answers?{gap(3)} (?:was|got|were) (?:marked|judged|graded|deemed|rejected|scored|ruled|flagged|
        considered)\b
    answers?{gap(3)} is (?:marked|judged|graded|deemed)(?: as)? {WRONG}
    # a text written again
    here(?:'s| is) (?:an?|the|my) (?:{AGAIN}|new|better|correct) {TEXT}\b
    this new version\b
    in this version
    {AGAIN} (?:step.by.step )?(?:solution|attempt|answer|response)\b(?! to part)
    (?:revised|rewritten|corrected|amended) (?:version|working|draft|reasoning)
    (?:improved|better|new|previous|earlier|first|original) version of (?:this|the|my) {TEXT}
    updated the (?:solution|answer)
    rewrit(?:es?|ing|ten) (?:of )?{MINE} (?:\w+ )?{TEXT}\b
    rewrite (?:this|it) with\b
    (?:revis|correct|fix|redo|rework|improv|amend)(?:e|ing)? {MINE} (?:\w+ )?(?:attempt|draft|
        response)\b
    revis(?:e|ing) the solution\b
    (?:copy|keep|retain|reuse|preserve|leave|leaving|copying|keeping|skip|
        drop)(?: out)? the (?:wrong step|(?:correct|right|valid) (?:opening|first|part|steps|lines|
        beginning))
    with the (?:wrong step|errors?|mistakes?) (?:fixed|corrected|left out|removed|taken out)
"""
TAGS = r"""
    (?:expected|feedback|attempt|hint|critique) (?:tags?|block|section|field)\b
    text (?:labelled|labeled|inside|between)\b
"""


def any_of(*texts: str) -> str:
    """Returns a pattern of any rule of these texts, from the beginning of a word on."""
    lines = re.sub(r"\n {8}", "", "".join(texts)).splitlines()
    return rf"\b(?:{'|'.join(x.strip() for x in lines if x and not x.startswith('    #'))})"


LEAK = re.compile(rf"< ?/? ?(?:{PARTS}) ?>|{any_of(CRITICS, TOLD, ANSWERS, TEXTS_BEFORE, TAGS)}")
FINE = re.compile(any_of(INNOCENT))
# A label at the beginning of a line.
HEADING = re.compile(
    rf"^[^\w\n]{{0,8}}(?:{GUIDE}|{CHECKER}|review|retry|rewrite|rewritten|revised|revision|expected|"
    rf"reference|(?:{CHECKER}|{PERSON})(?:'s)? (?:{REMARK}|notes?|message)|(?:{AGAIN}|{BEFORE}|"
    rf"feedback|critique|expected|reference|given|retry) (?:{TEXT}|addressed))[^\w\n]{{0,4}}[:\]]",
    re.MULTILINE,
)
# Words that leak nothing where the problem itself has them.
NAMED = re.compile(rf"\b(?:{HELP}|{PERSON}|attempt|try|notes|told)")
WORD = re.compile(r"\b[a-z]{1,9}\b")
