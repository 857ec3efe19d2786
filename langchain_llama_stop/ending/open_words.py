"""Words that no sentence ends with, so that no full stop is put after them: data, by language."""

OPEN_WORDS = frozenset(
    # English: articles, determiners, possessives, conjunctions, prepositions, auxiliaries, subjects
    "a an the this these those each every either neither both my your his its our their whose "
    "some any no such what which who whom that if whether because since although though unless "
    "until while when where why how as than and or but nor yet so then therefore thus however "
    "moreover furthermore of to in on at by for from with without within into onto upon about "
    "above across after against along among around before behind below beneath beside besides "
    "between beyond despite down during except inside like near off out outside over past per "
    "through throughout toward towards under underneath up via is are was were be been being am "
    "has have had having do does did can could will would shall should may might must ought "
    "cannot can't won't don't doesn't didn't isn't aren't wasn't weren't wouldn't couldn't "
    "shouldn't i you he she we they i'm you're he's she's we're they're there's let's i've you've "
    "we've they've i'll you'll we'll they'll very quite rather more most less least also only "
    "even "
    "just still always often usually not called named including "
    "equals plus minus times divided using becoming became become seems seem makes make made lets "
    "let gives give given get gets getting helps help allows allow means includes include "
    "contains contain need needs want wants try tries going "
    # German
    "der die das den dem des ein eine einen einem einer eines kein keine keinen und oder aber "
    "denn "
    "sondern weil dass daß ob wenn als wie sowie im in an am auf aus bei beim mit nach von vom "
    "vor "
    "zu zum zur für durch gegen ohne um über unter zwischen ist sind war waren wird werden wurde "
    "wurden hat haben hatte hatten kann können muss müssen soll sollen darf dürfen ich du er sie "
    "es wir ihr mein dein sein ihre ihren ihrer seine seinen unser sehr noch auch nur "
    # French
    "le la les un une des du de l d et ou mais donc car ni que qu qui dont où si comme quand à au "
    "aux en dans sur sous par pour avec sans entre vers chez est sont était étaient a ont avait "
    "être avoir peut peuvent doit doivent je tu il elle nous vous ils elles mon ma mes ton ta tes "
    "son sa ses notre votre leur leurs ce cet cette ces très plus ne pas "
    # Spanish, Portuguese, Italian
    "el los las lo una unos unas y e o u pero sino porque que si como cuando donde a al del en "
    "con "
    "sin por para entre sobre hasta desde hacia es son era eran está están fue fueron ha han "
    "había "
    "puede pueden debe deben se su sus mi mis tu tus nuestro este esta estos estas ese esa muy "
    "más "
    "no os as um uma uns umas mas ou à ao aos às da das do dos na nas nos num numa com sem é são "
    "foi foram pode podem deve devem seu sua seus suas este esta il gli i uno ed ma perché che se "
    "come quando di del della dello dei degli delle al alla allo ai dal dalla nel nella nello nei "
    "con per tra fra su sul sulla è sono era erano ha hanno può possono deve devono suo sua suoi "
    # Dutch, Danish, Norwegian, Swedish
    "het een en of maar want dat die dit deze van voor met naar op aan bij uit over door te ter "
    "ten zijn was waren wordt worden werd heeft hebben had kan kunnen moet moeten zal ik je hij "
    "zij wij we mijn haar hun ons og eller men fordi at som den det de der i på til fra med av af "
    "ved om er var har havde hadde kan skal vil må en et ett och att för från är blev jag du han "
    "hon vi min sin deras mycket "
    # Russian, Polish, Czech, Turkish
    "и или но а что чтобы если как когда где который которая которое которые в во на с со к ко по "
    "за из от до для без под над при про о об у не ни я ты он она мы вы они мой его её их был "
    "была "
    "было были есть это очень i lub albo ale oraz że żeby jeśli jak gdy który która które w we na "
    "z ze do od dla bez pod nad przy o u nie jest są był była a nebo ale že aby když který která "
    "které v ve na s se k ke po za ze od do pro bez je jsou byl byla ve veya ama ile için bir bu "
    "şu "
    "çok daha".split()
)
OPEN_CHARACTERS = frozenset(
    "的和与與及或而但把被从從对對向在是为為因跟给給将將这這那はがをにでとのへや"
)
"""Chinese and Japanese characters that lead to what comes."""
